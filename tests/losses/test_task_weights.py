import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from t5lite.core.errors import UserError
from t5lite.data.batching.features import TASK_ID, EncoderDecoderLayout, TaskLayout, batch_of
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import check_tasks, evaluation_loss
from t5lite.losses.task_weights import TaskWeights
from tests.losses.fixed import Fixed

# Of sums of a few float32 numbers.
ROUNDING = 1e-5
PLAIN = CrossEntropy(z_loss=0.0)


def packed_batch():
    """A row with an example of each of two tasks."""
    layout = TaskLayout(EncoderDecoderLayout(8, 6))
    inputs = np.array([5, 1])
    examples = [
        {"inputs": inputs, "targets": np.array([3, 1]), TASK_ID: np.array([2])},
        {"inputs": inputs, "targets": np.array([2, 4, 1]), TASK_ID: np.array([1])},
    ]
    return batch_of(layout, [examples])


@pytest.mark.parametrize("weights", [(2.0, 0.5), None])
def test_each_target_has_the_weight_of_its_task(weights):
    batch = packed_batch()
    assert batch["decoder_task_ids"].tolist() == [[2, 2, 1, 1, 1, 0]]
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(1, 6, 7)).astype(np.float32)
    log_variances = np.array([0.3, -0.7], np.float32)
    params = {"logits": logits, "log_variances": log_variances}
    loss = TaskWeights(tasks=["a", "b"], weights=weights, cross_entropy=PLAIN)
    batch = jax.tree.map(jnp.asarray, batch)
    sums = jax.jit(lambda loss, p: loss(Fixed(), p, batch))(loss, params)
    nats = -log_softmax(logits[0].astype(float), axis=-1)[range(5), [3, 1, 2, 4, 1]]
    of_tasks = [nats[2:].sum(), nats[:2].sum()]
    if weights:
        wanted = 2.0 * of_tasks[0] + 0.5 * of_tasks[1]
    else:
        wanted = sum(
            np.exp(-s) * own + count * s / 2
            for s, own, count in zip(log_variances, of_tasks, (3, 2), strict=True)
        )
    assert sums["loss"] == pytest.approx(wanted, abs=ROUNDING)
    assert sums["cross_entropy"] == pytest.approx(nats.sum(), abs=ROUNDING)
    means = loss.means({name: float(value) for name, value in sums.items()})
    assert means["a/cross_entropy_nats_per_token"] == pytest.approx(of_tasks[0] / 3, abs=ROUNDING)
    assert means["b/cross_entropy_nats_per_token"] == pytest.approx(of_tasks[1] / 2, abs=ROUNDING)
    first = 2.0 if weights else np.exp(-log_variances[0])
    assert means["a/weight"] == pytest.approx(first, abs=ROUNDING)
    assert evaluation_loss(loss) == PLAIN


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: TaskWeights(tasks=["a", "b"], weights=[1.0]),
            "TaskWeights.weights must be 2 numbers, .*, got 1",
        ),
        (lambda: TaskWeights(tasks=["a"], weights=[-1.0]), "weights must be at least 0, got -1"),
        (lambda: TaskWeights(tasks="ab"), "TaskWeights.tasks must be a list of names, got 'ab'"),
        (
            lambda: check_tasks(TaskWeights(tasks=["a", "b"]), ["b", "a"], 2),
            r"TaskWeights.tasks must name the tasks of a mixture, \['b', 'a'\], .* got \['a', 'b'",
        ),
        (
            lambda: check_tasks(TaskWeights(tasks=["a", "b"]), ["a", "b"], 0),
            "T5Config.num_weighted_tasks must be 2 with train.loss = @TaskWeights",
        ),
        (
            lambda: check_tasks(PLAIN, ["a", "b"], 2),
            "T5Config.num_weighted_tasks must be 0 with train.loss = @CrossEntropy",
        ),
    ],
)
def test_weights_that_do_not_fit_the_tasks_are_rejected(call, message):
    with pytest.raises(UserError, match=message):
        call()

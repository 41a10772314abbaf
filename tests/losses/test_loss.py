import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.core.batches import targets_of
from t5lite.core.errors import UserError
from t5lite.core.numbers import Number, as_inputs, numeric
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.evaluation import row_sums
from t5lite.losses.loss import check_loss, check_sums, mean_metrics
from t5lite.models.architectures import EncoderDecoder, ModelApply
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.state import initial_state, params_and_axes
from t5lite.training.step import make_train_step
from tests import small

MODEL = EncoderDecoder(small.config())


@numeric
class RDrop:
    """Cross-entropy of two passes with different dropout, and their symmetric divergence.

    Source: Liang et al., "R-Drop: Regularized Dropout for Neural Networks", equation 4.
    """

    alpha: Number = 1.0

    def __call__(self, apply, params, batch, key=None, *, by_row=False):
        targets, weights = targets_of(batch)
        keys = [None, None] if key is None else jax.random.split(key)
        logits = [apply(params, batch, one) for one in keys]
        of_passes = [CrossEntropy().sums(x, targets, weights, by_row=by_row) for x in logits]
        log_p, log_q = (jax.nn.log_softmax(x) for x in logits)
        divergence = jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), -1) / 2
        divergence = jnp.sum(divergence * weights, 1 if by_row else None)
        loss = (of_passes[0]["loss"] + of_passes[1]["loss"]) / 2
        return {
            "loss": loss + self.alpha * divergence,
            "tokens": of_passes[0]["tokens"],
            "divergence": divergence,
        }

    def means(self, sums):
        return {"divergence_nats_per_token": sums["divergence"] / sums["tokens"]}


@numeric
class Wrong:
    """Returns other sums than a loss must."""

    sums: dict

    def __call__(self, apply, params, batch, key=None, *, by_row=False):
        return self.sums

    def means(self, sums):
        return {}


def batch():
    return jax.tree.map(jnp.asarray, small.batch(0))


@pytest.mark.proof
def test_a_loss_that_calls_the_model_twice_equals_its_formula():
    params, key = small.params(MODEL), jax.random.key(3)
    apply = ModelApply(MODEL, 0.2)
    sums = jax.jit(lambda p: RDrop(alpha=0.5)(apply, p, batch(), key))(params)
    weights = np.asarray(targets_of(batch())[1])
    passes = [
        np.asarray(jax.nn.log_softmax(apply(params, batch(), k)), np.float64)
        for k in jax.random.split(key)
    ]
    assert np.abs(passes[0] - passes[1]).max() > 0.01
    divergence = 0.0
    for row, position in np.argwhere(weights > 0):
        p, q = passes[0][row, position], passes[1][row, position]
        divergence += (np.exp(p) * (p - q)).sum() / 2 + (np.exp(q) * (q - p)).sum() / 2
    assert float(sums["divergence"]) == pytest.approx(divergence, rel=1e-3)
    metrics = mean_metrics(RDrop(), [jax.device_get(sums)])
    assert metrics["divergence_nats_per_token"] == pytest.approx(
        divergence / weights.sum(), rel=1e-3
    )
    assert metrics["loss_nats_per_token"] > 0


@pytest.mark.proof
def test_the_numbers_of_any_loss_are_inputs_of_the_program():
    _, axes = params_and_axes(MODEL)

    def text(alpha):
        hyper = Hyperparameters(
            optimizer=make_optimizer(optax.sgd, name="sgd", learning_rate=0.1),
            loss=RDrop(alpha=alpha),
            seed=np.int32(0),
            dropout_rate=0.1,
            max_gradient_norm=None,
        )
        inputs = as_inputs(hyper)
        state = jax.eval_shape(lambda h: initial_state(MODEL, h, axes), inputs)
        return jax.jit(make_train_step(MODEL, axes)).lower(inputs, state, batch()).as_text()

    assert text(0.3) == text(0.7)


def test_evaluation_has_the_standard_sums_whatever_the_loss():
    apply, params = ModelApply(MODEL), small.params(MODEL)
    own = jax.jit(lambda p: row_sums(RDrop(), apply, p, batch()))(params)
    standard = jax.jit(lambda p: row_sums(CrossEntropy(), apply, p, batch()))(params)
    for name in ("loss", "cross_entropy", "correct", "tokens"):
        np.testing.assert_allclose(own[name], standard[name], rtol=1e-5, err_msg=name)
    assert float(jnp.abs(own["divergence"]).max()) < 1e-6


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ({"loss": 1.0}, r"must return the sums loss and tokens, got \['loss'\]; add 'tokens'"),
        ({"loss": 1.0, "tokens": 1.0, "learning_rate": 1.0}, "'learning_rate', a name of the step"),
        ({"loss": [1.0], "tokens": 1.0}, r"must return 'loss' with shape \(\) .*, got \(1,\)"),
    ],
)
def test_sums_that_training_cannot_use_are_rejected(sums, message):
    wrong = Wrong(sums={name: jnp.asarray(value) for name, value in sums.items()})
    with pytest.raises(UserError, match=message):
        check_sums(wrong, wrong.sums, batch())


def test_a_loss_whose_numbers_cannot_be_inputs_is_rejected():
    class Plain:
        def __call__(self, apply, params, batch, key=None, *, by_row=False):
            return {}

        def means(self, sums):
            return {}

    with pytest.raises(UserError, match="train.loss must be a class decorated with .*numeric"):
        check_loss(Plain(), 0.1)

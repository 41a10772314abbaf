import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from t5lite.core.errors import UserError
from t5lite.losses.answer_span import SpanCrossEntropy, best_span, span_log_probs
from t5lite.models.classifier import Classes
from tests.losses.fixed import Fixed

# Of sums of a few float32 numbers.
ROUNDING = 1e-5
# Two examples in the first row, whose candidates are positions 0, 2, 3 and 4, 5; the third row is
# padding, and the span of the second is not known.
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 0], [1] * 7, [0] * 7], np.int32)
WEIGHTS = np.array([[1, 0, 1, 1, 1, 1, 0], [1] * 7, [0] * 7], np.int32)
TARGETS = np.array([[0, 0, 1, 2, 3, 0, 0], [0] * 7, [0] * 7], np.int32)
BATCH = {
    "encoder_segment_ids": jnp.asarray(SEGMENTS),
    "encoder_loss_weights": jnp.asarray(WEIGHTS),
    "encoder_target_tokens": jnp.asarray(TARGETS),
}


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(5).normal(size=(3, 7, 2)).astype(np.float32)


@jax.jit
def sums_of(logits):
    loss = SpanCrossEntropy()
    params = {"logits": logits}
    return loss(Fixed(), params, BATCH, by_row=True), loss(Fixed(), params, BATCH)


def test_the_loss_is_the_mean_of_both_ends_of_each_known_span(logits):
    by_row, whole = sums_of(jnp.asarray(logits))
    wanted, correct = 0.0, 0
    for candidates, first, last in (([0, 2, 3], 1, 2), ([4, 5], 0, 0)):
        of_ends = [log_softmax(logits[0, candidates, end].astype(float)) for end in (0, 1)]
        wanted -= 0.5 * (of_ends[0][first] + of_ends[1][last])
        correct += of_ends[0].argmax() == first and of_ends[1].argmax() == last
    assert by_row["loss"].tolist() == pytest.approx([wanted, 0, 0], abs=ROUNDING)
    assert by_row["tokens"].tolist() == [2, 0, 0]
    assert by_row["correct"].tolist() == [correct, 0, 0]
    for name, value in whole.items():
        assert value == pytest.approx(float(by_row[name].sum()), abs=ROUNDING), name


def test_a_sure_model_has_every_span_right():
    logits = jnp.stack([TARGETS & 1, TARGETS & 2], axis=-1) * 50.0
    by_row, _ = sums_of(logits)
    assert by_row["correct"].tolist() == by_row["tokens"].tolist() == [2, 0, 0]
    gradient = jax.grad(lambda x: SpanCrossEntropy()(Fixed(), {"logits": x}, BATCH)["loss"])
    grads = jax.jit(gradient)(logits)
    assert np.isfinite(grads).all()


def test_a_model_that_has_diverged_has_no_span_right(logits):
    by_row, _ = sums_of(jnp.full_like(logits, jnp.nan))
    assert by_row["correct"].tolist() == [0, 0, 0]


def test_the_best_span_is_the_best_of_all_pairs(logits):
    one = {**BATCH, "encoder_segment_ids": jnp.ones_like(BATCH["encoder_segment_ids"])}
    log_probs = span_log_probs(jnp.asarray(logits), one)
    numbers, scores = best_span(log_probs, jnp.asarray(WEIGHTS) > 0, longest=3)
    for row in range(2):
        own = np.asarray(log_probs[row])
        candidates = np.flatnonzero(WEIGHTS[row])
        pairs = {
            (int(i), int(j)): own[i, 0] + own[j, 1]
            for i in candidates
            for j in candidates
            if 0 <= j - i < 3 and i > 0
        }
        first, last = max(pairs, key=pairs.get)
        wanted = np.zeros(7, int)
        wanted[first] += 1
        wanted[last] += 2
        assert numbers[row].tolist() == wanted.tolist()
        assert scores[row] == pytest.approx(pairs[first, last], abs=ROUNDING)


def test_spans_have_two_classes():
    with pytest.raises(UserError, match="Classes.count must be 2 with Classes.structure 'span'"):
        Classes(count=3, per_token=True, structure="span")

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from t5lite.core.errors import UserError
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import mean_metrics


def _random(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, 4, 11)).astype(np.float32) * 3
    targets = rng.integers(0, 11, (3, 4)).astype(np.int32)
    weights = rng.integers(0, 2, (3, 4)).astype(np.int32)
    return logits, targets, weights


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sums_equal_the_formula_in_float64(smoothing):
    logits, targets, weights = _random(0)
    wide = logits.astype(np.float64)
    confidence, other = 1 - smoothing, smoothing / 10
    soft = np.where(np.arange(11) == targets[..., None], confidence, other)
    entropy = -np.sum(np.where(soft > 0, soft * np.log(np.maximum(soft, 1e-300)), 0), -1)
    smoothed = -(soft * log_softmax(wide, -1)).sum(-1) - entropy
    z_loss = 0.01 * logsumexp(wide, -1) ** 2
    sums = CrossEntropy(z_loss=0.01, label_smoothing=smoothing).sums(
        jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights)
    )
    # float32 sums over eleven classes and twelve tokens.
    assert float(sums["loss"]) == pytest.approx(((smoothed + z_loss) * weights).sum(), rel=1e-5)
    assert float(sums["z_loss"]) == pytest.approx((z_loss * weights).sum(), rel=1e-5)
    assert float(sums["tokens"]) == weights.sum()
    assert float(sums["correct"]) == ((logits.argmax(-1) == targets) * weights).sum()


def test_a_perfect_smoothed_prediction_costs_nothing():
    soft = np.full((1, 1, 5), 0.1 / 4)
    soft[0, 0, 2] = 0.9
    sums = CrossEntropy(z_loss=0.0, label_smoothing=0.1).sums(
        jnp.asarray(np.log(soft), jnp.float32), jnp.array([[2]]), jnp.array([[1]])
    )
    assert float(sums["loss"]) == pytest.approx(0.0, abs=1e-6)


def test_of_equal_logits_the_first_is_the_highest():
    sums = CrossEntropy().sums(jnp.zeros((1, 2, 5)), jnp.array([[0, 1]]), jnp.ones((1, 2)))
    assert float(sums["correct"]) == 1


def test_means_divide_by_the_tokens_of_all_steps():
    steps = [
        {"loss": 2.0, "cross_entropy": 2.0, "z_loss": 0.0, "correct": 1.0, "tokens": 1.0},
        {"loss": 1.0, "cross_entropy": 1.0, "z_loss": 0.0, "correct": 2.0, "tokens": 3.0},
    ]
    metrics = mean_metrics(CrossEntropy(), steps)
    assert metrics["loss_nats_per_token"] == 0.75
    assert metrics["accuracy_fraction"] == 0.75


def test_label_smoothing_of_one_is_rejected():
    with pytest.raises(UserError, match=r"CrossEntropy.label_smoothing must be in \[0, 1\)"):
        CrossEntropy(label_smoothing=1.0)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.numbers import Number, as_inputs, numeric
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.distillation import Distillation
from t5lite.losses.loss import check_loss, evaluation_loss, mean_metrics

# Logits of order 1 to 4, in float32.
ROUNDING = 2e-6
ROWS = 3
LENGTH = 5
SIZE = 11


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def reference(loss, logits, teacher, targets, weights, known):
    """The sums of each row in float64, written from the formula."""
    cross = loss.cross_entropy
    log_q, log_p = (log_softmax(x.astype(np.float64)) for x in (logits, teacher))
    of_targets, of_teacher = (
        -np.take_along_axis(x, targets[..., None], axis=-1)[..., 0] for x in (log_q, log_p)
    )
    other = cross.label_smoothing / (logits.shape[-1] - 1)
    smooth = np.full(logits.shape, other)
    np.put_along_axis(smooth, targets[..., None], 1 - cross.label_smoothing, axis=-1)
    entropy = -(smooth * np.log(np.maximum(smooth, 1e-300))).sum(-1)
    smoothed = -(smooth * log_q).sum(-1) - entropy
    normaliser = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    soft_q, soft_p = (
        log_softmax(x.astype(np.float64) / loss.temperature) for x in (logits, teacher)
    )
    divergence = (np.exp(soft_p) * (soft_p - soft_q)).sum(-1)
    mixed = (1 - loss.weight) * smoothed + loss.weight * loss.temperature**2 * divergence
    per_token = np.where(known, mixed, smoothed) + cross.z_loss * normaliser**2
    return {
        "loss": (per_token * weights).sum(1),
        "cross_entropy": (of_targets * weights).sum(1),
        "distillation": (divergence * weights * known).sum(1),
        "teacher_cross_entropy": (of_teacher * weights * known).sum(1),
        "distilled": (weights * known).sum(1),
        "tokens": weights.sum(1),
    }


@pytest.fixture
def tokens(rng):
    return {
        "logits": 2 * rng.normal(size=(ROWS, LENGTH, SIZE)).astype(np.float32),
        "teacher": 2 * rng.normal(size=(ROWS, LENGTH, SIZE)).astype(np.float32),
        "targets": rng.integers(0, SIZE, (ROWS, LENGTH)).astype(np.int32),
        "weights": rng.integers(0, 2, (ROWS, LENGTH)).astype(np.float32),
        "known": rng.integers(0, 2, (ROWS, LENGTH)).astype(bool),
    }


class Frozen:
    """A teacher whose hidden states are given; its logits are a product with `kernel`."""

    def __init__(self, hidden, known, kernel):
        self.given = hidden, known
        self.kernel = kernel

    def hidden(self, batch):
        return self.given

    def logits(self, x):
        return x @ self.kernel


class GivenApply(Frozen):
    """A model whose parameters are its hidden states, beside a teacher."""

    def __init__(self, kernel, teacher):
        self.kernel = kernel
        self.frozen = {"teacher": teacher}

    def __call__(self, params, batch, key=None):
        return self.logits(params, params)

    def hidden(self, params, batch, key=None):
        return params, {}

    def logits(self, params, x):
        return x @ self.kernel

    def embedded(self, params, batch):
        return {}

    def head(self, params, name, *arguments):
        raise AssertionError(name)


@functools.partial(jax.jit, static_argnames="by_row")
def compiled(loss, *arrays, by_row):
    return loss.sums(*arrays, by_row=by_row)


def sums_of(loss, tokens, *, by_row=False):
    return compiled(as_inputs(loss), *map(jnp.asarray, tokens.values()), by_row=by_row)


LOSSES = [
    Distillation(),
    Distillation(weight=1.0, temperature=1.0),
    Distillation(
        weight=0.3,
        temperature=3.5,
        cross_entropy=CrossEntropy(z_loss=1e-2, label_smoothing=0.2),
    ),
]


@pytest.mark.parametrize("loss", LOSSES, ids=["usual", "teacher alone", "smoothed"])
def test_sums_equal_the_formula_in_float64(loss, tokens):
    found = sums_of(loss, tokens, by_row=True)
    for name, expected in reference(loss, *tokens.values()).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
    whole = sums_of(loss, tokens)
    assert all(
        float(whole[name]) == pytest.approx(float(x.sum()), rel=1e-5, abs=1e-5)
        for name, x in found.items()
    )


def test_without_weight_it_is_cross_entropy_and_a_perfect_student_has_no_divergence(tokens):
    arrays = (jnp.asarray(tokens[name]) for name in ("logits", "targets", "weights"))
    plain = compiled(as_inputs(CrossEntropy()), *arrays, by_row=False)
    none = sums_of(Distillation(weight=0.0), tokens)
    assert {name: float(none[name]) for name in plain} == {n: float(x) for n, x in plain.items()}
    equal = sums_of(Distillation(), tokens | {"teacher": tokens["logits"]})
    assert abs(float(equal["distillation"])) < ROUNDING


@pytest.mark.parametrize("chunks", [1, 2])
def test_hidden_states_and_the_gradient_equal_the_formula(chunks, tokens, rng):
    loss = Distillation(
        weight=0.4,
        temperature=1.5,
        hidden_weight=0.7,
        cross_entropy=CrossEntropy(chunks=chunks, z_loss=0.0),
    )
    width = 4
    hidden, theirs = (rng.normal(size=(ROWS, LENGTH, width)).astype(np.float32) for _ in range(2))
    kernel, of_teacher = (rng.normal(size=(width, SIZE)).astype(np.float32) for _ in range(2))
    apply = GivenApply(
        kernel, Frozen(jnp.asarray(theirs), jnp.asarray(tokens["known"]), of_teacher)
    )
    batch = {
        "decoder_target_tokens": jnp.asarray(tokens["targets"]),
        "decoder_loss_weights": jnp.asarray(tokens["weights"]),
    }

    def loss_of(x):
        sums = loss(apply, x, batch)
        return sums["loss"], sums

    gradient, sums = jax.jit(jax.grad(loss_of, has_aux=True))(jnp.asarray(hidden))
    h, t, k, kt = (x.astype(np.float64) for x in (hidden, theirs, kernel, of_teacher))
    weights = tokens["weights"] * tokens["known"]
    expected = reference(loss, h @ k, t @ kt, *list(tokens.values())[2:])
    squares = (((h - t) ** 2).mean(-1) * weights).sum()
    np.testing.assert_allclose(sums["hidden_squares"], squares, rtol=1e-5)
    np.testing.assert_allclose(sums["loss"], expected["loss"].sum() + 0.7 * squares, rtol=1e-5)
    # d loss / d logits: probabilities minus the target, and T (q - p).
    one_hot = np.eye(SIZE)[tokens["targets"]]
    share = np.where(tokens["known"], 1 - loss.weight, 1.0)[..., None]
    soft_q, soft_p = (np.exp(log_softmax(x / loss.temperature)) for x in (h @ k, t @ kt))
    of_logits = share * (np.exp(log_softmax(h @ k)) - one_hot) * tokens["weights"][..., None]
    of_logits += loss.weight * loss.temperature * (soft_q - soft_p) * weights[..., None]
    of_hidden = 0.7 * 2 * (h - t) / width * weights[..., None]
    np.testing.assert_allclose(gradient, of_logits @ k.T + of_hidden, rtol=1e-4, atol=1e-5)


def test_metrics_are_means_over_the_targets_that_the_teacher_predicts(tokens):
    loss = Distillation()
    sums = sums_of(loss, tokens)
    metrics = mean_metrics(loss, [sums, sums])
    known = float((tokens["weights"] * tokens["known"]).sum())
    for name in ("distillation", "teacher_cross_entropy"):
        mean = float(sums[name]) / max(known, 1)
        assert metrics[f"{name}_nats_per_token"] == pytest.approx(mean, rel=1e-5)
    assert metrics["distilled_tokens_fraction"] == pytest.approx(
        known / max(tokens["weights"].sum(), 1), rel=1e-5
    )


def test_widths_that_differ_are_an_error():
    teacher = Frozen(jnp.ones((1, 1, 4)), jnp.ones((1, 1), bool), np.ones((4, 3)))
    apply = GivenApply(np.ones((2, 3)), teacher)
    batch = {f"decoder_{n}": jnp.ones((1, 1), jnp.int32) for n in ("target_tokens", "loss_weights")}
    with pytest.raises(UserError, match=r"hidden_weight needs the same .*, got 2 and 4; bind"):
        jax.eval_shape(
            lambda x: Distillation(hidden_weight=1.0)(apply, x, batch), jnp.ones((1, 1, 2))
        )


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("weight", 1.5, "in [0, 1]"),
        ("temperature", 0.0, "over 0"),
        ("hidden_weight", -1.0, "over 0"),
    ],
)
def test_numbers_out_of_range_are_errors(field, value, rule):
    with pytest.raises(UserError) as error:
        Distillation(**{field: value})
    assert str(error.value) == f"Distillation.{field} must be {rule}, got {value}"


@numeric
class NeedsTeacher:
    """A loss of a user's own that evaluation cannot score."""

    scale: Number = 1.0
    needs = ("teacher",)

    def __call__(self, apply, params, batch, key=None, *, by_row=False):
        return {}

    def means(self, sums):
        return {}


def test_evaluation_scores_a_loss_without_other_models():
    cross = CrossEntropy(z_loss=0.5)
    assert evaluation_loss(Distillation(cross_entropy=cross)) == cross
    assert evaluation_loss(cross) == cross
    with pytest.raises(UserError, match="NeedsTeacher needs other models, so it must have an"):
        check_loss(NeedsTeacher(), 0.1)

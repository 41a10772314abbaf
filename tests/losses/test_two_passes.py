"""R-Drop and adversarial inputs against NumPy's float64, on a model that NumPy computes too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.numbers import as_inputs
from t5lite.core.streams import stream
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import mean_metrics
from t5lite.losses.two_passes import Adversarial, RDrop
from t5lite.models.architectures import EncoderDecoder, ModelApply
from tests import small

# Sums of float32 over a few tokens, and of their differences.
TOLERANCE = 1e-5
# The direction of the ascent is a quotient of small differences.
ASCENT_TOLERANCE = 2e-3


@dataclasses.dataclass(frozen=True)
class OneLayer:
    """Embeds tokens, adds their offsets, and a row of a table for the mask of the key."""

    rate: float

    @property
    def frozen(self):
        return {}

    def embedded(self, params, batch):
        return {"encoder_embedding_offsets": params["table"][batch["encoder_input_tokens"]]}

    def head(self, params, name, *arguments):
        raise AssertionError(name)

    def keep(self, key, shape):
        return jax.random.bernoulli(key, 1 - self.rate, shape)

    def hidden(self, params, batch, key=None):
        (x,) = self.embedded(params, batch).values()
        x = jnp.tanh((x + batch.get("encoder_embedding_offsets", 0.0)) @ params["inner"])
        if key is not None:
            x = x * self.keep(key, x.shape) / (1 - self.rate)
        return x, {}

    def logits(self, params, x):
        return x @ params["outer"]

    def __call__(self, params, batch, key=None):
        return self.logits(params, self.hidden(params, batch, key)[0])


APPLY = OneLayer(0.3)
ROWS, LENGTH, WIDTH, VOCAB = 2, 5, 4, 7
SHAPE = (ROWS, LENGTH, WIDTH)


def example(rng):
    params = {
        "table": rng.normal(size=(VOCAB, WIDTH)),
        "inner": rng.normal(size=(WIDTH, WIDTH)),
        "outer": rng.normal(size=(WIDTH, VOCAB)),
    }
    batch = {
        "encoder_input_tokens": rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        "encoder_target_tokens": rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        "encoder_loss_weights": rng.integers(0, 2, (ROWS, LENGTH)).astype(np.int32),
    }
    return params, batch


def log_probs(params, batch, key, offsets=0.0):
    """What the model predicts with the dropout of a key, in float64."""
    keep = np.asarray(APPLY.keep(key, SHAPE), np.float64) / (1 - APPLY.rate)
    x = params["table"][batch["encoder_input_tokens"]] + offsets
    logits = (np.tanh(x @ params["inner"]) * keep) @ params["outer"]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def cross_entropy(log_p, batch):
    picked = np.take_along_axis(log_p, batch["encoder_target_tokens"][..., None], -1)[..., 0]
    return -(picked * batch["encoder_loss_weights"]).sum()


def divergence(log_p, log_q, batch):
    forward = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    backward = (np.exp(log_q) * (log_q - log_p)).sum(-1)
    return ((forward + backward) / 2 * batch["encoder_loss_weights"]).sum()


def sums_of(loss, params, batch, key):
    def sums(inputs, params, batch):
        return inputs(APPLY, params, batch, key)

    arrays = (jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), batch)
    return jax.device_get(jax.jit(sums)(as_inputs(loss), *arrays))


@pytest.mark.parametrize("chunks", [1, 2])
def test_r_drop_equals_its_formula(chunks, rng, seed):
    params, batch = example(rng)
    key = jax.random.key(seed)
    loss = RDrop(weight=0.7, cross_entropy=CrossEntropy(z_loss=0.0, chunks=chunks))
    sums = sums_of(loss, params, batch, key)
    first, second = (log_probs(params, batch, k) for k in (key, stream(key, "second pass")))
    expected = (cross_entropy(first, batch) + cross_entropy(second, batch)) / 2
    apart = divergence(first, second, batch)
    np.testing.assert_allclose(sums["cross_entropy"], expected, rtol=TOLERANCE)
    np.testing.assert_allclose(sums["divergence"], apart, rtol=TOLERANCE)
    # Half of the published loss: twice the cross-entropy, and alpha times the divergence.
    np.testing.assert_allclose(sums["loss"], expected + 0.35 * apart, rtol=TOLERANCE)
    metrics = mean_metrics(loss, [sums])
    tokens = max(batch["encoder_loss_weights"].sum(), 1)
    np.testing.assert_allclose(metrics["divergence_nats_per_token"], apart / tokens, rtol=TOLERANCE)


def ascended(loss, params, batch, key, start):
    """The offsets after all ascents, by differences of float64."""
    embedded = params["table"][batch["encoder_input_tokens"]]
    norms = np.linalg.norm(embedded, axis=-1, keepdims=True)
    clean = log_probs(params, batch, key)

    def within(offsets):
        own = np.linalg.norm(offsets, axis=-1, keepdims=True)
        return offsets * np.minimum(1, loss.radius * norms / np.maximum(own, 1e-300))

    offsets = within(loss.noise * norms / np.sqrt(WIDTH) * start)
    for _ in range(loss.steps):
        gradient = np.zeros(SHAPE)
        for index in np.ndindex(*SHAPE):
            step = np.zeros(SHAPE)
            step[index] = 1e-6
            values = [log_probs(params, batch, key, offsets + s) for s in (step, -step)]
            high, low = (divergence(clean, v, batch) for v in values)
            gradient[index] = (high - low) / 2e-6
        lengths = np.linalg.norm(gradient, axis=-1, keepdims=True)
        direction = np.where(lengths > 1e-9, gradient / np.maximum(lengths, 1e-300), 0.0)
        offsets = within(offsets + loss.step_size * norms * direction)
    return offsets


@pytest.mark.parametrize(("steps", "step_size", "radius"), [(1, 0.3, 0.2), (2, 0.05, 1.0)])
def test_adversarial_inputs_equal_their_formula(steps, step_size, radius, rng, seed):
    params, batch = example(rng)
    key = jax.random.key(seed)
    loss = Adversarial(
        weight=0.4,
        noise=0.1,
        steps=steps,
        step_size=step_size,
        radius=radius,
        cross_entropy=CrossEntropy(z_loss=0.0, chunks=steps),
    )
    sums = sums_of(loss, params, batch, key)
    noise = stream(stream(key, "adversarial noise"), "encoder_embedding_offsets")
    start = np.asarray(jax.random.normal(noise, SHAPE), np.float64)
    clean = log_probs(params, batch, key)
    moved = log_probs(params, batch, key, ascended(loss, params, batch, key, start))
    apart = divergence(clean, moved, batch)
    np.testing.assert_allclose(sums["cross_entropy"], cross_entropy(clean, batch), rtol=TOLERANCE)
    np.testing.assert_allclose(
        sums["divergence"], apart, rtol=ASCENT_TOLERANCE, atol=ASCENT_TOLERANCE
    )
    np.testing.assert_allclose(
        sums["loss"], sums["cross_entropy"] + 0.4 * sums["divergence"], rtol=TOLERANCE
    )


@pytest.mark.parametrize("loss", [RDrop(), Adversarial()], ids=["r_drop", "adversarial"])
def test_evaluation_is_the_cross_entropy(loss, rng):
    params, batch = jax.tree.map(jnp.asarray, example(rng))
    for by_row in (False, True):
        own = loss(APPLY, params, batch, by_row=by_row)
        standard = CrossEntropy()(APPLY, params, batch, by_row=by_row)
        jax.tree.map(np.testing.assert_array_equal, own, standard)


@pytest.mark.proof
def test_adversarial_inputs_of_an_example_ignore_others_of_its_row(seed):
    # The tokens of the second example of each row change; its targets have no weight.
    model = EncoderDecoder(small.config())
    params = small.params(model)
    batch = small.batch(seed)
    changed = dict(batch)
    for stack in ("encoder", "decoder"):
        segments = batch[f"{stack}_segment_ids"].copy()
        segments[:, 2:] *= 2
        batch[f"{stack}_segment_ids"] = changed[f"{stack}_segment_ids"] = segments
        tokens = batch[f"{stack}_input_tokens"]
        changed[f"{stack}_input_tokens"] = np.where(segments == 2, (tokens + 7) % 250, tokens)
    weights = batch["decoder_loss_weights"] * (batch["decoder_segment_ids"] == 1)
    batch["decoder_loss_weights"] = changed["decoder_loss_weights"] = weights
    key = jax.random.key(seed)
    loss = jax.jit(lambda batch: Adversarial()(ModelApply(model, 0.1), params, batch, key))
    before, after = (jax.device_get(loss(b)) for b in (batch, changed))
    assert before["divergence"] > 0
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-4, err_msg=name)


def test_r_drop_without_dropout_is_rejected(text_file, data_dir, tmp_path):
    message = r"T5Config.dropout_rate must be over 0 with train.loss = @RDrop\(\), .* got 0"
    with pytest.raises(UserError, match=message):
        small.run(text_file, data_dir, tmp_path, loss=RDrop())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RDrop(weight=-1.0), "RDrop.weight must be at least 0, got -1.0"),
        (lambda: Adversarial(noise=0.0), "Adversarial.noise must be over 0, got 0.0"),
        (lambda: Adversarial(steps=0), "Adversarial.steps must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()

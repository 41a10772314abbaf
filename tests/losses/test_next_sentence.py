import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.next_sentence import NextSentence
from tests.losses.fixed import Fixed

# Of sums of a few float32 numbers.
ROUNDING = 1e-5


def test_each_example_adds_its_pair_for_each_of_its_masked_tokens():
    rng = np.random.default_rng(7)
    params = {
        "logits": rng.normal(size=(2, 6, 5)).astype(np.float32),
        "pair_logits": rng.normal(size=(2, 6, 2)).astype(np.float32),
    }
    weights = np.array([[0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]], np.int32)
    batch = {
        "encoder_segment_ids": np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 0, 0, 0]], np.int32),
        "encoder_target_tokens": rng.integers(0, 5, (2, 6)).astype(np.int32),
        "encoder_loss_weights": weights,
        # Next, other, and an example without a label.
        "encoder_pair_labels": np.array([[1, 0, 0, 2, 0, 0], [0] * 6], np.int32),
    }
    batch = jax.tree.map(jnp.asarray, batch)
    params = jax.tree.map(jnp.asarray, params)
    cross_entropy = CrossEntropy(z_loss=0.0)
    loss = NextSentence(weight=0.5, cross_entropy=cross_entropy)
    sums = jax.jit(lambda p: loss(Fixed(), p, batch, by_row=True))(params)
    plain = cross_entropy(Fixed(), params, batch, by_row=True)
    pairs = log_softmax(params["pair_logits"][0].astype(float), axis=-1)
    nats = [-pairs[0, 0], -pairs[3, 1]]
    added = 0.5 * (2 * nats[0] + 1 * nats[1])
    assert sums["loss"][0] == pytest.approx(float(plain["loss"][0]) + added, abs=ROUNDING)
    assert sums["loss"][1] == pytest.approx(float(plain["loss"][1]), abs=ROUNDING)
    assert sums["pair_loss"].tolist() == pytest.approx([sum(nats), 0], abs=ROUNDING)
    right = int(pairs[0, 0] > pairs[0, 1]) + int(pairs[3, 1] > pairs[3, 0])
    assert sums["right_pairs"].tolist() == [right, 0]
    totals = {name: float(value.sum()) for name, value in sums.items()}
    found = loss.means(totals)["next_sentence_nats_per_pair"]
    assert found == pytest.approx(sum(nats) / 2, abs=ROUNDING)

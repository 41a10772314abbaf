import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from t5lite.models.attention import reference_attention
from t5lite.models.masks import AttentionMask
from tests import small
from tests.models import chunked_attention
from tests.models.incremental import logits_by_pieces, packed, prefixed
from tests.proofs import proof, proofs_but

CHUNKED = "tests.models.chunked_attention:attention"
# float32, the same sums in another order.
TOLERANCE = 2e-5

ONE_LAYER = {"num_encoder_layers": 1, "num_decoder_layers": 1}
MODELS = {
    "shared_bias_windows": EncoderDecoder(
        small.config(
            encoder_windows=(2, None),
            num_decoder_layers=1,
            decoder_windows=(1,),
            attention_soft_cap=2.0,
            attention_scale=0.5,
        )
    ),
    "layer_bias": EncoderDecoder(small.config(positions="layer_bias", **ONE_LAYER)),
    "transient_global": EncoderOnly(
        small.config(
            num_encoder_layers=1,
            num_decoder_layers=0,
            encoder_attention="transient_global",
            local_radius=2,
            global_block_size=4,
        )
    ),
    "grouped_rotary_prefix": DecoderOnly(
        small.decoder_config(
            num_decoder_layers=1, num_kv_heads=1, positions="rotary", prefix_attention=True
        )
    ),
    "merged": EncoderDecoder(
        small.config(
            positions="rotary", merged_attention=True, decoder_windows=((1, 0),), **ONE_LAYER
        )
    ),
}


def chunked(model):
    return model.clone(config=dataclasses.replace(model.config, attention=CHUNKED))


def batch_for(model):
    return prefixed(4) if model.config.prefix_attention else packed(2)


@pytest.mark.parametrize("name", proofs_but(("grouped_rotary_prefix",), MODELS))
def test_attention_from_outside_gives_the_logits_and_gradients_of_the_reference(name):
    model, batch = MODELS[name], jax.tree.map(jnp.asarray, batch_for(MODELS[name]))
    params = small.params(model)
    stack = "decoder" if model.has_decoder else "encoder"
    real = batch[f"{stack}_segment_ids"] > 0

    def loss(params, model):
        logits = model.apply({"params": params}, batch)
        return jnp.sum(jnp.sin(logits) * real[..., None]), logits

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    chunked_attention.block_sizes.clear()
    gradients, logits = run(params, chunked(model))
    assert max(chunked_attention.block_sizes) == chunked_attention.BLOCK
    expected_gradients, expected = run(params, model)
    np.testing.assert_allclose(logits[real], expected[real], rtol=TOLERANCE, atol=TOLERANCE)
    jax.tree.map(
        # Sums over all tokens, in another order.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        gradients,
        expected_gradients,
    )


@pytest.mark.parametrize(
    "name", [proof("shared_bias_windows"), "grouped_rotary_prefix", proof("merged")]
)
def test_attention_from_outside_reads_a_cache(name):
    model = MODELS[name]
    batch = batch_for(model)
    params = small.params(model)
    expected = np.asarray(small.logits(model, params, batch))
    length = batch["decoder_segment_ids"].shape[1]
    got = logits_by_pieces(chunked(model), params, batch, [length - 2, 1, 1])
    real = batch["decoder_segment_ids"] > 0
    np.testing.assert_allclose(got[real], expected[real], rtol=TOLERANCE, atol=TOLERANCE)


def test_attention_that_does_not_exist_is_rejected():
    with pytest.raises(UserError, match=r"T5Config.attention has no 'flash'; known: reference"):
        small.config(attention="flash")


def test_a_query_without_visible_keys_gets_zero():
    query = jax.random.normal(jax.random.key(0), (1, 2, 1, 4))
    ids = jnp.array([[1, 2]]), jnp.array([[1, 1]])
    mask = AttentionMask(query_segment_ids=ids[0], key_segment_ids=ids[1])
    result = reference_attention(query, query, query, mask=mask, bias=None)
    assert not result[0, 1].any()
    assert result[0, 0].all()


def test_soft_cap_bounds_the_difference_of_scores():
    query = jnp.full((1, 1, 1, 1), 100.0)
    key = jnp.array([1.0, -1.0]).reshape(1, 2, 1, 1)
    value = jnp.array([1.0, 0.0]).reshape(1, 2, 1, 1)
    got = reference_attention(
        query, key, value, mask=AttentionMask(), bias=None, scale=0.5, soft_cap=2.0
    )
    # Scores of 50 and -50 become 2 and -2.
    assert float(got[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-4)), rel=1e-6)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_mask_of_a_block_of_keys_is_a_block_of_the_mask(start):
    ids = jnp.array([[1, 1, 2, 2, 2, 0]])
    prefix = jnp.array([[1, 1, 1, 1, 0, 0]])
    memory = jnp.arange(6) == 4
    mask = AttentionMask(
        query_segment_ids=ids,
        key_segment_ids=ids,
        query_prefix=prefix,
        key_prefix=prefix,
        memory_keys=memory,
        visible=jnp.ones((1, 1, 6, 6), bool).at[0, 0, 0, 0].set(False),
        causal=True,
        window=(1, 2),
    )
    whole = mask.to_array(6, 6)
    part = jax.jit(lambda start: mask.keys(start, 3).to_array(6, 3))(start)
    np.testing.assert_array_equal(part, whole[..., start : start + 3])
    expected = np.zeros((6, 6), bool)
    for q, k in np.ndindex(6, 6):
        same = ids[0, q] == ids[0, k] != 0
        ordered = k <= q or (prefix[0, q] and prefix[0, k])
        near = q - 1 <= k <= q + 2
        expected[q, k] = same and ((ordered and near) or memory[k]) and (q, k) != (0, 0)
    np.testing.assert_array_equal(whole[0, 0], expected)

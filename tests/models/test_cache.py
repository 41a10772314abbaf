import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from tests import small
from tests.models.families import FAMILIES
from tests.models.incremental import extended, logits_by_pieces, packed, prefixed, started
from tests.proofs import proof, proofs_but

# float32, the same sums in another order.
TOLERANCE = 1e-5

MODELS = {
    "t5_1_1": EncoderDecoder(small.config()),
    "t5_1_0": EncoderDecoder(small.config(mlp_activations=("relu",), tied_logits=True)),
    "umt5": EncoderDecoder(small.config(positions="layer_bias")),
    "short_distances": EncoderDecoder(small.config(num_buckets=8, max_distance=5)),
    "decoder_only": DecoderOnly(small.decoder_config()),
    "gemma_style": EncoderDecoder(
        small.config(
            norm="rms_plus_one",
            norm_placement="sandwich",
            positions="rotary",
            decoder_windows=(2, None),
            attention_soft_cap=2.0,
            num_decoder_layers=3,
        )
    ),
    "post_norm": EncoderDecoder(
        small.config(norm="layer", norm_placement="post", linear_bias=True)
    ),
    "llama_like": DecoderOnly(
        small.decoder_config(
            positions="rotary",
            num_heads=4,
            num_kv_heads=2,
            mlp_activations=("silu", "linear"),
        )
    ),
    **FAMILIES,
}


def check_equal(model, batch, sizes):
    params = small.params(model)
    expected = np.asarray(small.logits(model, params, batch))
    real = batch["decoder_segment_ids"] > 0
    got = logits_by_pieces(model, params, batch, sizes)
    np.testing.assert_allclose(got[real], expected[real], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", proofs_but(("t5_1_1", "decoder_only", "t5gemma_2"), MODELS))
def test_token_by_token_equals_the_full_pass_at_every_position(name):
    check_equal(MODELS[name], small.batch(1, targets=9), [1] * 9)


@pytest.mark.proof
@pytest.mark.parametrize("name", MODELS)
def test_token_by_token_equals_the_full_pass_of_packed_rows(name):
    check_equal(MODELS[name], packed(2), [1] * 12)


@pytest.mark.parametrize("sizes", [[4, 1, 1, 3], proof([9]), proof([2, 7])])
def test_tokens_may_be_processed_in_pieces_of_any_size(sizes):
    check_equal(MODELS["t5_1_1"], small.batch(3, targets=9), sizes)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "shared_bias"},
        proof({"positions": "layer_bias"}),
        proof({"positions": "rotary", "decoder_windows": (2, None)}),
    ],
    ids=["shared_bias", "layer_bias", "rotary_with_windows"],
)
def test_a_prefix_is_processed_at_once_and_later_tokens_one_by_one(changes):
    model = DecoderOnly(small.decoder_config(prefix_attention=True, **changes))
    # The second prefix, in the middle of the row, needs a piece of its own.
    check_equal(model, prefixed(4), [4, 1, 1, 1, 3, 1, 1, 1, 1])


def test_a_prefix_changes_what_its_tokens_see():
    model = DecoderOnly(small.decoder_config(prefix_attention=True))
    batch = small.batch(5, targets=6)
    params = small.params(model)
    prefix = np.zeros_like(batch["decoder_segment_ids"])
    prefix[:, :4] = 1
    causal = logits_by_pieces(model, params, batch, [4, 2])
    whole = logits_by_pieces(model, params, {**batch, "decoder_causal_attention": prefix}, [4, 2])
    assert np.abs(causal[0, 0] - whole[0, 0]).max() > 1e-3


@pytest.mark.parametrize("name", ["t5_1_1", proof("t5gemma_2")])
def test_encoder_keys_and_values_are_computed_once(name):
    model, batch = MODELS[name], jax.tree.map(jnp.asarray, small.batch(6))
    params = small.params(model)
    cache = started(model, {"params": params}, batch, capacity=6)

    def without(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        gone = name.startswith("encoder/") or "encoder_decoder_attention/key" in name
        return leaf * (0 if gone or "encoder_decoder_attention/value" in name else 1)

    part = {k: v[:, :1] for k, v in batch.items() if k.startswith("decoder")}
    logits = [
        extended(model, {"params": p}, part, cache)[0]
        for p in (params, jax.tree_util.tree_map_with_path(without, params))
    ]
    np.testing.assert_array_equal(*logits)


def test_tokens_beyond_the_capacity_give_no_logits():
    model, batch = MODELS["t5_1_1"], jax.tree.map(jnp.asarray, small.batch(7))
    variables = {"params": small.params(model)}
    cache = started(model, variables, batch, capacity=5)
    decoder = {k: v for k, v in batch.items() if k.startswith("decoder")}
    four, two = ({k: v[:, part] for k, v in decoder.items()} for part in (slice(4), slice(4, 6)))
    logits, cache = extended(model, variables, four, cache)
    assert jnp.isfinite(logits).all()
    assert jnp.isnan(extended(model, variables, two, cache)[0]).all()

"""An encoder-decoder made from decoder-only models: its parameters, and what it computes."""

import dataclasses
import functools
import json
import pathlib

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray, by_name
from t5lite.core.streams import stream
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.interop.adaptation import MERGED, SEPARATE, adapt, is_fresh, source_of
from t5lite.interop.foreign import Foreign
from t5lite.interop.huggingface import read_huggingface, write_huggingface
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from t5lite.models.model import init, parameters
from t5lite.models.relative_bias import relative_position_bucket
from tests import small
from tests.proofs import proof

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "huggingface"
# The same sums in another order: attention over keys that are all hidden, and over none.
RTOL = 1e-5
ROTARY = {"positions": "rotary", "num_kv_heads": 1, "tied_logits": True}
GEMMA = {
    **ROTARY,
    "norm": "rms_plus_one",
    "norm_placement": "sandwich",
    "scale_embeddings": True,
    "scale_tied_logits": False,
    "logits_soft_cap": 30.0,
    "attention_soft_cap": 50.0,
    "decoder_windows": ((2, 0), None),
    "attention_scale": 0.4,
}


def foreign(config, seed=0, **more):
    """A decoder-only checkpoint with random parameters."""
    model = DecoderOnly(config)
    params = by_name(small.params(model, seed))
    lazy = {
        n: LazyArray(x.shape, x.dtype, functools.partial(np.asarray, x)) for n, x in params.items()
    }
    return Foreign(model=model, params=lazy, step=7, **more)


def loaded(adapted):
    """The parameters of a checkpoint as a tree."""
    arrays = {name: jnp.asarray(lazy.load()) for name, lazy in adapted.params.items()}
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def without_inputs(batch):
    """The batch with encoder inputs that are all padding."""
    hidden = ("encoder_input_tokens", "encoder_segment_ids")
    return {n: np.zeros_like(x) if n in hidden else x for n, x in batch.items()}


@pytest.mark.parametrize("form", [SEPARATE, proof(MERGED)])
@pytest.mark.parametrize("fields", [ROTARY, proof(GEMMA)], ids=["llama", "gemma"])
def test_without_inputs_the_decoder_is_the_decoder_only_model(form, fields, seed):
    source = foreign(small.decoder_config(**fields), seed)
    adapted = adapt(source, form=form)
    params = loaded(adapted)
    if form == SEPARATE:
        # Cross-attention reads nothing: its output is the mean of hidden values.
        cross = params["decoder"]["layers"]["encoder_decoder_attention"]["out"]
        cross["kernel"] = jnp.zeros_like(cross["kernel"])
    batch = small.batch(seed)
    found = small.logits(adapted.model, params, without_inputs(batch))
    expected = small.logits(source.model, small.params(source.model, seed), batch)
    counted = batch["decoder_segment_ids"] > 0
    np.testing.assert_allclose(
        np.asarray(found)[counted], np.asarray(expected)[counted], rtol=RTOL, atol=RTOL
    )


@pytest.mark.parametrize("form", [SEPARATE, MERGED])
def test_the_encoder_is_the_decoder_that_sees_both_sides(form, seed):
    source = foreign(small.decoder_config(**GEMMA | {"decoder_windows": ()}), seed)
    adapted = adapt(source, form=form)
    batch = small.batch(seed)
    encode = jax.jit(lambda p, b: adapted.model.apply({"params": p}, b, method="encode"))
    found = encode(loaded(adapted), batch)
    # A prefix language model reads its prefix as an encoder does.
    prefix = DecoderOnly(dataclasses.replace(source.model.config, prefix_attention=True))
    segments = batch["encoder_segment_ids"]
    row = {
        "decoder_input_tokens": batch["encoder_input_tokens"],
        "decoder_segment_ids": segments,
        "decoder_causal_attention": segments,
    }
    hidden = jax.jit(lambda p, b: prefix.apply({"params": p}, b, method="hidden"))
    expected = hidden(small.params(source.model, seed), row)
    np.testing.assert_allclose(
        np.asarray(found)[segments > 0], np.asarray(expected)[segments > 0], rtol=RTOL, atol=RTOL
    )


def test_every_parameter_is_its_source_to_the_bit(seed):
    source = foreign(small.decoder_config(**GEMMA), seed)
    for form in (SEPARATE, MERGED):
        adapted = adapt(source, form=form)
        shapes = {n: box.value.shape for n, box in parameters(adapted.model).items()}
        assert {n: lazy.shape for n, lazy in adapted.params.items()} == shapes
        assert adapted.step == 0
        for name, lazy in adapted.params.items():
            theirs = source.params[source_of(name).name].load()
            assert lazy.load().tobytes() == theirs.tobytes(), name
        stacks = {"encoder_token_embedder", "encoder", "token_embedder", "decoder"}
        if form == MERGED:
            # No parameter is new, and none is left over: the encoder has all but the embedding.
            stacks.remove("encoder_token_embedder")
            assert not any("encoder_decoder_attention" in name for name in adapted.params)
        assert {name.split("/")[0] for name in adapted.params} == stacks


def test_cross_attention_and_its_norms_come_from_self_attention():
    layers = "decoder/layers"
    for name, theirs in (
        ("encoder_decoder_attention/value/kernel", "self_attention/value/kernel"),
        ("pre_cross_attention_layer_norm/scale", "pre_self_attention_layer_norm/scale"),
        ("post_cross_attention_layer_norm/scale", "post_self_attention_layer_norm/scale"),
    ):
        assert source_of(f"{layers}/{name}") == ("decoder", f"{layers}/{theirs}")


SMALL_ENCODER = {"embed_dim": 12, "num_heads": 3, "num_kv_heads": 3, "head_dim": 4, "mlp_dim": 20}


@pytest.fixture(scope="module")
def pair():
    """A decoder and an encoder of unequal widths and depths, and what they are adapted into."""
    decoder = foreign(small.decoder_config(**GEMMA))
    changes = {**GEMMA, **SMALL_ENCODER, "num_decoder_layers": 3, "attention_scale": 0.5}
    encoder = foreign(small.decoder_config(**changes), 1)
    return {"decoder": decoder, "encoder": encoder}, adapt(decoder, encoder, seed=5)


@pytest.mark.proof
def test_an_unbalanced_pair_has_the_sizes_and_parameters_of_both(pair, seed):
    sources, adapted = pair
    config = adapted.model.config
    for field in (*SMALL_ENCODER, "attention_scale"):
        theirs = getattr(sources["encoder"].model.config, field)
        assert getattr(config.encoder_config(), field) == theirs, field
        assert getattr(config, field) == getattr(sources["decoder"].model.config, field), field
    assert (config.num_encoder_layers, config.num_decoder_layers) == (3, 2)
    fresh = {name for name in adapted.params if is_fresh(name, config)}
    cross = "decoder/layers/encoder_decoder_attention"
    assert fresh == {f"{cross}/{name}/kernel" for name in ("query", "key", "value", "out")}
    for name, lazy in adapted.params.items():
        source = source_of(name)
        if name not in fresh:
            theirs = sources[source.checkpoint].params[source.name].load()
            assert lazy.load().tobytes() == theirs.tobytes(), name
    logits = small.logits(adapted.model, loaded(adapted), small.batch(seed))
    assert np.isfinite(np.asarray(logits)).all()
    (remark,) = (remark for remark in adapted.remarks if "convert.seed=5" in remark)
    assert "the encoder's width is 12 and the decoder's 16" in remark


@pytest.mark.proof
def test_initialized_maps_are_those_of_a_run_with_the_seed(pair):
    _, adapted = pair
    made = jax.jit(lambda: nn.unbox(init(adapted.model, stream(jax.random.key(5), "init"))))
    whole = by_name(made())
    for name, lazy in adapted.params.items():
        if is_fresh(name, adapted.model.config):
            np.testing.assert_allclose(lazy.load(), whole[name], rtol=1e-6, err_msg=name)


def test_equal_sizes_are_those_of_the_decoder():
    config = small.decoder_config(**ROTARY)
    for encoder in (None, foreign(dataclasses.replace(config, num_decoder_layers=1), 1)):
        found = adapt(foreign(config), encoder).model.config
        assert found == dataclasses.replace(
            config, num_encoder_layers=1 if encoder else 2, separate_embeddings=True
        )
    # Heads of keys and values that follow from other heads.
    config = small.decoder_config(positions="rotary")
    more = foreign(dataclasses.replace(config, num_heads=3, num_kv_heads=3))
    found = adapt(foreign(config), more).model.config
    assert (found.encoder_num_heads, found.encoder_num_kv_heads) == (3, None)


def test_the_encoders_bias_is_the_decoders_of_the_same_distance():
    config = small.decoder_config()
    source = foreign(config)
    theirs = np.asarray(source.params["decoder/relpos_bias/rel_embedding"].load())
    bias = adapt(source).params["encoder/relpos_bias/rel_embedding"].load()

    def bucket(distance, *, bidirectional):
        return relative_position_bucket(
            np.atleast_1d(distance),
            bidirectional=bidirectional,
            num_buckets=config.num_buckets,
            max_distance=config.max_distance,
        )

    # Distances that have a bucket of their own in both.
    for distance in range(8):
        expected = theirs[:, bucket(-distance, bidirectional=False)]
        for side in (-distance, distance):
            np.testing.assert_array_equal(bias[:, bucket(side, bidirectional=True)], expected)
    # Others have the mean over their distances, of which the decoder has more buckets.
    for sign in (-1, 1):
        distances = np.arange(8, config.max_distance + 1)
        mine = bucket(sign * distances, bidirectional=True)
        for each in np.unique(mine):
            mean = theirs[:, bucket(-distances[mine == each], bidirectional=False)].mean(axis=1)
            np.testing.assert_allclose(bias[:, each], mean, rtol=1e-5, atol=1e-6)


def test_a_prefix_model_reads_its_prefix_in_the_encoder():
    adapted = adapt(foreign(small.decoder_config(**ROTARY, prefix_attention=True)))
    assert not adapted.model.config.prefix_attention
    assert any("prefix_attention becomes False" in remark for remark in adapted.remarks)


@pytest.mark.parametrize(
    ("form", "left", "windows"),
    [(SEPARATE, 2, (3, 3)), proof(MERGED, 2, (1, 1)), proof(MERGED, 3, (1, 2))],
)
def test_encoder_windows_reach_as_far_as_those_of_the_published_models(form, left, windows):
    config = small.decoder_config(**ROTARY, decoder_windows=((left, 0), None))
    assert adapt(foreign(config), form=form).model.config.encoder_windows == (windows, None)


def of_kind(model):
    return Foreign(model=model, params={})


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (EncoderDecoder(small.config()), "EncoderDecoder"),
        (EncoderOnly(small.config(num_decoder_layers=0)), "EncoderOnly"),
    ],
)
def test_other_kinds_of_models_are_rejected_by_name(model, kind):
    decoder = foreign(small.decoder_config())
    rule = f"must be a decoder-only model, got {kind}"
    with pytest.raises(UserError, match=f"--adapt=encoder_decoder: --input {rule}"):
        adapt(of_kind(model))
    with pytest.raises(UserError, match=f"--adapt=encoder_decoder: --adapt_encoder {rule}"):
        adapt(decoder, of_kind(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 400}, "needs the same T5Config.vocab_size in .* got 384 and 400"),
        ({"norm": "rms_plus_one"}, "same T5Config.norm in .* got 'rms' and 'rms_plus_one'"),
        ({"mlp_activations": ("relu",)}, "same T5Config.mlp_activations in "),
    ],
)
def test_models_that_cannot_be_paired_are_rejected_with_both_values(changes, message):
    config = small.decoder_config()
    with pytest.raises(UserError, match=message):
        adapt(foreign(config), of_kind(DecoderOnly(dataclasses.replace(config, **changes))))


def test_the_merged_form_has_one_checkpoint_and_rotary_positions():
    decoder = foreign(small.decoder_config())
    with pytest.raises(UserError, match="from --input, whose embedding .* got --adapt_encoder"):
        adapt(decoder, decoder, form=MERGED)
    with pytest.raises(UserError, match="T5Config.positions must be 'rotary' with T5Config.merged"):
        adapt(decoder, form=MERGED)


def test_vocabularies_must_be_equal_and_one_is_enough():
    config = small.decoder_config(**ROTARY)
    with_bytes = foreign(config, vocabulary=ByteVocabulary())
    other = foreign(config, vocabulary=ByteVocabulary(num_sentinels=7))
    with pytest.raises(UserError, match="--adapt needs the same vocabulary in --input and --ad"):
        adapt(with_bytes, other)
    for pair in ((with_bytes, foreign(config)), (foreign(config), with_bytes)):
        assert adapt(*pair).vocabulary == ByteVocabulary()


def test_a_gemma_2_is_adapted_into_a_t5gemma_that_transformers_can_load(tmp_path):
    source = read_huggingface(GOLDEN / "gemma2")
    adapted = adapt(source)
    write_huggingface(adapted, tmp_path, np.dtype(np.float32))
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["model_type"] == "t5gemma"
    width = json.loads((GOLDEN / "gemma2" / "config.json").read_text())["sliding_window"]
    assert [settings[stack]["sliding_window"] for stack in ("encoder", "decoder")] == [width] * 2
    again = read_huggingface(tmp_path)
    assert again.model == adapted.model
    assert again.params.keys() == adapted.params.keys()
    for name, lazy in again.params.items():
        np.testing.assert_array_equal(lazy.load(), adapted.params[name].load(), err_msg=name)


def test_a_gemma_3_is_adapted_into_a_t5gemma_2(tmp_path):
    adapted = adapt(read_huggingface(GOLDEN / "gemma3"), form=MERGED)
    write_huggingface(adapted, tmp_path, np.dtype(np.float32))
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["model_type"] == "t5gemma2"
    width = json.loads((GOLDEN / "gemma3" / "config.json").read_text())["sliding_window"]
    stacks = (settings["encoder"]["text_config"], settings["decoder"])
    assert [stack["sliding_window"] for stack in stacks] == [width] * 2


def test_continued_positions_of_cross_attention_are_a_choice_of_the_form_that_has_it(seed):
    source = foreign(small.decoder_config(**ROTARY), seed)
    plain, continued = (adapt(source, cross_positions=name) for name in ("none", "continued"))
    assert continued.model.config.cross_positions == "continued"
    assert {n: lazy.shape for n, lazy in continued.params.items()} == {
        n: lazy.shape for n, lazy in plain.params.items()
    }
    with pytest.raises(UserError, match="T5Config.merged_attention must be False with T5Config.cr"):
        adapt(source, form=MERGED, cross_positions="continued")
    with pytest.raises(UserError, match="T5Config.cross_positions is unknown: got 'after'"):
        adapt(source, cross_positions="after")

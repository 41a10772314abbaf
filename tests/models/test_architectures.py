import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from t5lite.models.classifier import Classes
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from tests import small
from tests.models import encoders, reference
from tests.models.families import FAMILIES
from tests.proofs import proof, proofs_but

# float32 against float64 over four layers: errors of 1e-7 each, and sums of up to 24 numbers.
TOLERANCE = 2e-5
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"

VARIANTS = {
    "t5_1_1": (EncoderDecoder, small.config()),
    "t5_1_0": (EncoderDecoder, small.config(mlp_activations=("relu",), tied_logits=True)),
    "unequal_depths": (EncoderDecoder, small.config(num_encoder_layers=3, num_decoder_layers=1)),
    "decoder_only": (DecoderOnly, small.decoder_config()),
    "gemma_style": (
        EncoderDecoder,
        small.config(
            norm="rms_plus_one",
            norm_placement="sandwich",
            encoder_windows=(2, None),
            decoder_windows=((1, 0), None),
            attention_scale=0.5,
            attention_soft_cap=2.0,
            num_decoder_layers=3,
        ),
    ),
    "post_norm": (
        EncoderDecoder,
        small.config(norm="layer", norm_placement="post", linear_bias=True),
    ),
    **{name: (type(model), model.config) for name, model in FAMILIES.items()},
}
# The gradients of the others are compared with those of transformers, tests/interop.
DIFFERENTIATED = [n for n in VARIANTS if n not in FAMILIES or n == "redllm"]
PACKED = ["t5_1_1", "gemma_style", "t5gemma", "t5gemma_2", "redllm"]
# Models whose parameters differ; frozen models of transformers compare their logits.
TREES = {
    **VARIANTS,
    "umt5": (EncoderDecoder, small.config(positions="layer_bias")),
    "longt5": (EncoderDecoder, small.config(encoder_attention="transient_global")),
    "llama_style": (
        DecoderOnly,
        small.decoder_config(num_kv_heads=1, positions="rotary"),
    ),
    "tagger": (
        functools.partial(EncoderOnly, classes=Classes(count=3, per_token=True)),
        small.config(num_decoder_layers=0),
    ),
    "classifier": (
        functools.partial(
            EncoderDecoderClassifier,
            classes=Classes(count=3, per_token=False, pooling="last", has_dense=True),
        ),
        small.config(),
    ),
    "bert": (EncoderOnly, encoders.ENCODERS["bert"].config),
    "modernbert": (EncoderOnly, encoders.ENCODERS["modernbert"].config),
}


@pytest.mark.parametrize("name", proofs_but(("t5_1_1", "t5gemma_2"), VARIANTS))
def test_logits_equal_an_independent_float64_t5(name):
    kind, config = VARIANTS[name]
    model, batch = kind(config), small.batch(1)
    params = small.params(model)
    logits = np.asarray(small.logits(model, params, batch))
    expected = reference.logits(params, batch, config)
    real = batch["decoder_segment_ids"] > 0
    np.testing.assert_allclose(logits[real], expected[real], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", proofs_but(("t5_1_1",), DIFFERENTIATED))
def test_gradient_equals_finite_differences_of_the_float64_t5(name):
    kind, config = VARIANTS[name]
    model, batch = kind(config), small.batch(2)
    params = small.params(model)

    def loss(params):
        log_probs = jax.nn.log_softmax(small.logits(model, params, batch))
        picked = jnp.take_along_axis(log_probs, batch["decoder_target_tokens"][..., None], axis=2)
        return -jnp.sum(picked[..., 0] * batch["decoder_loss_weights"])

    grads = jax.jit(jax.grad(loss))(params)
    rng = np.random.default_rng(0)
    wide = reference.float64(params)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), wide)
    step = 1e-6
    up = jax.tree.map(lambda p, d: p + step * d, wide, direction)
    down = jax.tree.map(lambda p, d: p - step * d, wide, direction)
    expected = (reference.loss(up, batch, config) - reference.loss(down, batch, config)) / (
        2 * step
    )
    got = sum(
        float(np.sum(np.asarray(g, np.float64) * d))
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )
    # The sum runs over some 15,000 parameters with float32 gradients.
    assert got == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", TREES)
def test_parameter_tree_equals_its_golden(name):
    kind, config = TREES[name]
    tree = jax.tree_util.tree_leaves_with_path(small.params(kind(config)))
    lines = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(leaf.shape)}\n"
        for path, leaf in tree
    ]
    golden, text = GOLDEN / f"parameters_{name}.txt", "".join(lines)
    assert golden.exists(), f"to create it, write {golden} with:\n{text}"
    assert text == golden.read_text(), f"if this change is intended, write {golden} with:\n{text}"


@pytest.mark.parametrize("name", proofs_but(("t5_1_1", "t5gemma_2", "llama_3"), VARIANTS))
def test_logits_ignore_later_targets(name):
    kind, config = VARIANTS[name]
    model, batch = kind(config), small.batch(3)
    params = small.params(model)
    changed = {**batch, "decoder_input_tokens": batch["decoder_input_tokens"].copy()}
    changed["decoder_input_tokens"][:, 3:] = 77
    before, after = (small.logits(model, params, b) for b in (batch, changed))
    real = batch["decoder_segment_ids"][:, :3] > 0
    np.testing.assert_array_equal(before[:, :3][real], after[:, :3][real])
    assert not np.array_equal(before[0, 3:], after[0, 3:])


def test_logits_ignore_the_tokens_of_padding():
    model, batch = EncoderDecoder(small.config()), small.batch(4)
    params = small.params(model)
    changed = {**batch}
    for side in ("encoder", "decoder"):
        name, segments = f"{side}_input_tokens", batch[f"{side}_segment_ids"]
        changed[name] = np.where(segments > 0, batch[name], 99)
    real = batch["decoder_segment_ids"] > 0
    before, after = (np.asarray(small.logits(model, params, b)) for b in (batch, changed))
    np.testing.assert_array_equal(before[real], after[real])


@pytest.mark.parametrize("name", proofs_but(("t5_1_1", "t5gemma_2"), PACKED))
def test_packed_rows_equal_separate_ones(name):
    model = EncoderDecoder(VARIANTS[name][1])
    params = small.params(model)
    one, two = (small.batch(seed, rows=1) for seed in (5, 6))
    packed = {name: np.concatenate([one[name], two[name]], axis=1) for name in one}
    for side in ("encoder", "decoder"):
        name = f"{side}_segment_ids"
        packed[name] = np.concatenate([one[name], 2 * two[name]], axis=1)
    separate = np.concatenate([small.logits(model, params, b) for b in (one, two)], axis=1)
    np.testing.assert_allclose(
        small.logits(model, params, packed), separate, rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.proof
@pytest.mark.parametrize("changes", [{"scan_unroll": 2}, {"remat": "full"}, {"remat": "minimal"}])
def test_unrolling_and_remat_change_no_gradient(changes):
    batch = small.batch(7)

    def gradient(config):
        model = EncoderDecoder(config)
        params = small.params(model)
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(small.logits(model, p, batch)))))(params)

    plain, changed = gradient(small.config()), gradient(small.config(**changes))
    # The same operations in float32, fused differently.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, changed
    )


def test_dropout_needs_a_rate_and_depends_on_the_key():
    model, batch = EncoderDecoder(small.config()), small.batch(8)
    params = small.params(model)

    def logits(seed, rate):
        rngs = {"dropout": jax.random.key(seed)}
        return small.logits(model, params, batch, dropout_rate=rate, rngs=rngs)

    np.testing.assert_array_equal(logits(0, None), logits(1, None))
    np.testing.assert_array_equal(logits(0, 0.5), logits(0, 0.5))
    assert not np.array_equal(logits(0, 0.5), logits(1, 0.5))
    np.testing.assert_allclose(logits(0, 0.0), logits(0, None), rtol=1e-6, atol=1e-6)


def test_bfloat16_logits_are_float32_and_near():
    batch = small.batch(9)
    params = small.params(EncoderDecoder(small.config()))
    exact = small.logits(EncoderDecoder(small.config()), params, batch)
    rough = small.logits(EncoderDecoder(small.config(dtype="bfloat16")), params, batch)
    assert rough.dtype == jnp.float32
    # bfloat16 keeps 8 bits: some forty roundings in sequence of 0.2 % on average.
    error = np.sqrt(np.mean(np.square(rough - exact)) / np.mean(np.square(exact)))
    assert 1e-4 < error < 0.04


def test_initialisers_have_t5s_scales():
    config = small.config(embed_dim=64, num_heads=4, head_dim=16, mlp_dim=256)
    params = small.params(EncoderDecoder(config))
    layers = params["decoder"]["layers"]
    attention = layers["self_attention"]
    expected = {
        "embedding": (params["token_embedder"]["embedding"], 1.0),
        "query": (attention["query"]["kernel"], (64 * 16) ** -0.5),
        "key": (attention["key"]["kernel"], 64**-0.5),
        "value": (attention["value"]["kernel"], 64**-0.5),
        "out": (attention["out"]["kernel"], 64**-0.5),
        "wi_0": (layers["mlp"]["wi_0"]["kernel"], 64**-0.5),
        "wo": (layers["mlp"]["wo"]["kernel"], 256**-0.5),
        "logits": (params["decoder"]["logits_dense"]["kernel"], 64**-0.5),
    }
    for name, (array, deviation) in expected.items():
        # At least 8,192 draws determine the deviation to about 1 %.
        assert float(array.std()) == pytest.approx(deviation, rel=0.04), name


@pytest.mark.parametrize("attention", ["local", proof("transient_global")])
def test_a_token_of_a_long_input_sees_only_its_neighbourhood(attention):
    config = small.config(encoder_attention=attention, local_radius=2, global_block_size=4)
    # One layer: the neighbourhood grows with each.
    config = dataclasses.replace(config, num_encoder_layers=1)
    model = EncoderDecoder(config)
    params = small.params(model)
    one = jax.tree.map(jnp.asarray, small.batch(1, rows=1, inputs=20))
    other = {**one, "encoder_input_tokens": one["encoder_input_tokens"].at[0, 10].add(1)}
    encoded = [model.apply({"params": params}, b, method="encode")[0] for b in (one, other)]
    changed = jnp.any(jnp.abs(encoded[0] - encoded[1]) > 1e-6, axis=1)
    near = jnp.abs(jnp.arange(20) - 10) <= 2
    # Global tokens carry the change to all others.
    expected = near if attention == "local" else jnp.ones(20, bool)
    assert changed.tolist() == expected.tolist()


def test_packed_rows_of_local_attention_equal_separate_ones():
    model = EncoderDecoder(small.config(encoder_attention="local", local_radius=2))
    params = small.params(model)
    one, two = (jax.tree.map(jnp.asarray, small.batch(seed, rows=1)) for seed in (5, 6))
    names = ("encoder_input_tokens", "encoder_segment_ids")
    packed = {n: jnp.concatenate([one[n], two[n]], axis=1) for n in names}
    packed["encoder_segment_ids"] = packed["encoder_segment_ids"].at[:, 10:].multiply(2)
    encode = functools.partial(model.apply, {"params": params}, method="encode")
    separate = np.concatenate([encode(one), encode(two)], axis=1)
    np.testing.assert_allclose(encode(packed), separate, rtol=TOLERANCE, atol=TOLERANCE)


def test_shared_key_heads_equal_repeated_ones():
    config = small.decoder_config(num_heads=4, num_kv_heads=2)
    params = small.params(DecoderOnly(config))

    def repeated(path, leaf):
        name = path[-2].key if path[-1].key == "kernel" else ""
        return jnp.repeat(leaf, 2, axis=2) if name in ("key", "value") else leaf

    whole = jax.tree_util.tree_map_with_path(repeated, params)
    batch = small.batch(3)
    np.testing.assert_allclose(
        small.logits(DecoderOnly(config), params, batch),
        small.logits(DecoderOnly(dataclasses.replace(config, num_kv_heads=None)), whole, batch),
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, r"num_kv_heads must be a divisor of num_heads \(2\), got 3"),
        ({"positions": "rotari"}, "positions is unknown: got 'rotari'; did you mean 'rotary'"),
        ({"positions": "rotary", "head_dim": 5}, "head_dim must be even for rotary"),
        ({"encoder_attention": "lokal"}, "did you mean 'local'"),
        (
            {"encoder_attention": "local", "positions": "layer_bias"},
            "T5Config.positions must be 'shared_bias' with T5Config.encoder_attention 'local', got",
        ),
        (
            {"encoder_attention": "local", "encoder_windows": (3,)},
            "T5Config.encoder_windows must be empty with T5Config.encoder_attention 'local', got",
        ),
        (
            {"num_decoder_layers": 0, "decoder_windows": (3,)},
            "T5Config.decoder_windows must be empty without decoder layers, got",
        ),
        (
            {"encoder_windows": (3, (1, -1))},
            "encoder_windows must be a list of None, whole numbers",
        ),
        ({"attention_soft_cap": 0.0}, "T5Config.attention_soft_cap must be over 0, got 0.0"),
        ({"norm_placement": "sandwhich"}, "did you mean 'sandwich'"),
        ({"max_distance": 16}, "max_distance must be over 16, .* of their own, got 16"),
        ({"num_buckets": 3}, "T5Config.num_buckets must be at least 4, got 3"),
        ({"num_heads": 10**10}, "T5Config.num_heads must be at most 16,777,216, got 10000000000"),
        ({"num_decoder_layers": 10**12}, "num_decoder_layers must be at most 16,777,216, got"),
        ({"encoder_mlp_dim": 1 << 25}, "T5Config.encoder_mlp_dim must be at most 16,777,216, got"),
        (
            {"decoder_windows": (3, 10**10)},
            "decoder_windows must be a list .* at most 16,777,216",
        ),
        ({"start_token": -1}, "T5Config.start_token must be a whole number >= 0, got -1"),
    ],
)
def test_invalid_choices_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        small.config(**changes)

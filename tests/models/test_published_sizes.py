"""The model files in gin/ have the published numbers of parameters."""

import math
import pathlib

import pytest

from t5lite import configurables
from t5lite.core.errors import UserError
from t5lite.models.model import parameters

MODELS = pathlib.Path(__file__).parent.parent.parent / "gin" / "models"

V1_1 = {
    "small": (512, 6, 64, 1024, 8, 8),
    "base": (768, 12, 64, 2048, 12, 12),
    "large": (1024, 16, 64, 2816, 24, 24),
    "xl": (2048, 32, 64, 5120, 24, 24),
    "xxl": (4096, 64, 64, 10240, 24, 24),
}
# By the config.json of each checkpoint on Hugging Face: d_model, num_heads, d_kv, d_ff, num_layers
# and num_decoder_layers, then vocab_size.
PUBLISHED = {
    "t5_1_0_small": (512, 8, 64, 2048, 6, 6, 32128),
    "t5_1_0_base": (768, 12, 64, 3072, 12, 12, 32128),
    "t5_1_0_large": (1024, 16, 64, 4096, 24, 24, 32128),
    "t5_1_0_3b": (1024, 32, 128, 16384, 24, 24, 32128),
    "t5_1_0_11b": (1024, 128, 128, 65536, 24, 24, 32128),
    "byt5_small": (1472, 6, 64, 3584, 12, 4, 384),
    "byt5_base": (1536, 12, 64, 3968, 18, 6, 384),
    "byt5_large": (1536, 16, 64, 3840, 36, 12, 384),
    "byt5_xl": (2560, 32, 64, 6720, 36, 12, 384),
    "byt5_xxl": (4672, 64, 64, 12352, 36, 12, 384),
    "ul2": (4096, 16, 256, 16384, 32, 32, 32128),
    **{f"t5_1_1_{size}": (*dims, 32128) for size, dims in V1_1.items()},
    **{f"mt5_{size}": (*dims, 250112) for size, dims in V1_1.items()},
    **{f"umt5_{size}": (*V1_1[size], 256384) for size in ("small", "base", "xl", "xxl")},
    **{f"longt5_local_{size}": (*V1_1[size], 32128) for size in ("base", "large")},
    **{f"longt5_tglobal_{size}": (*V1_1[size], 32128) for size in ("base", "large", "xl")},
}
# By the config.json of each checkpoint: hidden_size, intermediate_size, num_hidden_layers and
# vocab_size; then `num_parameters` of the models with logits of tokens.
ENCODERS = {
    "bert_base": ((768, 3072, 12, 30522), 109_514_298),
    "bert_large": ((1024, 4096, 24, 30522), 335_174_458),
    "modernbert_base": ((768, 1152, 22, 50368), 149_655_232),
    "modernbert_large": ((1024, 2624, 28, 50368), 395_881_664),
}
# `num_parameters` of the loaded models.
COUNTED = {
    "t5_1_0_small": 60_506_624,
    "t5_1_0_base": 222_903_552,
    "t5_1_0_large": 737_668_096,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "byt5_small": 299_637_760,
    "byt5_base": 581_653_248,
}


def count_of(name):
    """The number of parameters, term by term."""
    d, heads, kv, ff, encoder, decoder, vocab = PUBLISHED[name]
    is_1_0, attention = name.startswith("t5_1_0"), 4 * d * heads * kv
    feed_forward = (2 if is_1_0 else 3) * d * ff
    bias = 32 * heads * (encoder + decoder if name.startswith("umt5") else 2)
    embeddings = vocab * d * (1 if is_1_0 or name == "ul2" else 2)
    extra = 32 * heads + encoder * d if "tglobal" in name else 0
    return (
        encoder * (attention + feed_forward + 2 * d)
        + decoder * (2 * attention + feed_forward + 3 * d)
        + (2 * d + bias + embeddings + extra)
    )


# T5Gemma by arXiv 2504.06225 and T5Gemma 2 by arXiv 2512.14856: layers, width, feed-forward width,
# heads, heads of keys and values, and the width of a head.
STACKS = {
    "s": (8, 512, 1024, 8, 8, 64),
    "b": (12, 768, 2048, 12, 12, 64),
    "l": (24, 1024, 2816, 16, 16, 64),
    "ml": (26, 1152, 6912, 4, 4, 256),
    "xl": (24, 2048, 5120, 32, 32, 64),
    "2b": (26, 2304, 9216, 8, 4, 256),
    "9b": (42, 3584, 14336, 16, 8, 256),
    "270m": (18, 640, 2048, 4, 1, 256),
    "1b": (26, 1152, 6912, 4, 1, 256),
    "4b": (34, 2560, 10240, 8, 4, 256),
}
# Parameters of the text path, in millions.
MILLIONS = {
    "t5gemma_s_s": 312.5,
    "t5gemma_b_b": 591.5,
    "t5gemma_l_l": 1241.8,
    "t5gemma_ml_ml": 2200.3,
    "t5gemma_xl_xl": 3767.0,
    "t5gemma_2b_2b": 5596.9,
    "t5gemma_2_270m_270m": 368.4,
    "t5gemma_2_1b_1b": 1697.8,
    "t5gemma_2_4b_4b": 7089.1,
}


# `num_parameters` of the loaded decoders.
DECODERS = {
    "gemma2_2b": 2_614_341_888,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "llama3_2_1b": 1_235_814_400,
    "qwen3_0_6b": 596_049_920,
}


def count_of_t5gemma(name):
    """The number of parameters, term by term."""
    *family, encoder, decoder = name.split("_")
    is_merged = family == ["t5gemma", "2"]

    def stack(size, source_dim):
        layers, d, ff, heads, groups, kv = STACKS[size]
        attention = 2 * d * heads * kv + 2 * d * groups * kv + (2 * kv if is_merged else 0)
        cross = 2 * d * heads * kv + 2 * source_dim * groups * kv + 2 * d
        layer = attention + 3 * d * ff + 4 * d + (cross if source_dim and not is_merged else 0)
        return layers * layer + d

    widths = [STACKS[size][1] for size in (encoder, decoder)]
    # T5Gemma 2 has a vector for the end of an image.
    embeddings = 262145 * widths[0] if is_merged else 256000 * sum(widths)
    return stack(encoder, 0) + stack(decoder, widths[0]) + embeddings


def test_the_terms_of_t5gemma_add_up_to_the_published_millions():
    counted = {name: round(count_of_t5gemma(name) / 1e6, 1) for name in MILLIONS}
    assert counted == MILLIONS


def count_of_encoder(name):
    """The number of parameters, term by term."""
    (d, ff, layers, vocab), _ = ENCODERS[name]
    if name.startswith("bert"):
        # Maps and norms with biases; 512 positions and two types.
        layer = 4 * (d * d + d) + 2 * d * ff + ff + d + 4 * d
        return (vocab + 512 + 2 + 2) * d + layers * layer + d * d + 3 * d + vocab
    layer = 4 * d * d + 3 * d * ff + 2 * d
    # The first layer has one norm; there are those of the embeddings, of the end and of the logits.
    return vocab * d + layers * layer - d + 3 * d + d * d + vocab


def test_the_terms_add_up_to_the_count_of_transformers_for_encoders():
    counts = {name: count for name, (_, count) in ENCODERS.items()}
    assert {name: count_of_encoder(name) for name in ENCODERS} == counts


def test_the_terms_add_up_to_the_count_of_transformers():
    assert {name: count_of(name) for name in COUNTED} == COUNTED


def bound_in(path):
    bindings = [line.partition(" = ") for line in path.read_text().splitlines()]
    return [name for name, _, _ in bindings if name.startswith("T5Config.")]


def model_file(path):
    """Returns a case, a proof if the model is large or a deep stack of alternating layers."""
    is_deep = path.stem.startswith(("t5gemma", "gemma", "modernbert"))
    is_small = path.stem in ("t5gemma_s_s", "gemma3_270m", "modernbert_base")
    is_large = path.stem.endswith(("large", "xl", "3b", "11b"))
    marks = pytest.mark.proof if is_large or (is_deep and not is_small) else ()
    return pytest.param(path, marks=marks, id=path.stem)


MODEL_FILES = [model_file(path) for path in sorted(MODELS.glob("*.gin"))]


@pytest.mark.parametrize("path", MODEL_FILES)
def test_model_files_bind_the_same_choices_so_that_one_replaces_another(path):
    of_size = {"T5Config.dtype", "T5Config.scan_unroll"}
    first = set(bound_in(MODELS / "t5_1_1_base.gin"))
    bound = set(bound_in(path)) - of_size
    # These can replace others, but not be replaced by them.
    if path.stem.startswith("t5gemma") or path.stem in DECODERS:
        assert first < bound
        bound -= {"T5Config.norm_epsilon"}
        first = set(bound_in(MODELS / "t5gemma_2b_2b.gin"))
    if path.stem in ENCODERS:
        assert first < bound
        first = set(bound_in(MODELS / f"{path.stem.partition('_')[0]}_base.gin"))
    assert bound == first


@pytest.mark.parametrize("name", ENCODERS)
def test_another_model_after_one_that_binds_more_is_rejected(name):
    files = ["gin/run/quickstart.gin", f"gin/models/{name}.gin", "gin/models/t5_1_1_base.gin"]
    with pytest.raises(UserError, match=r"T5Config\.\w+ must be None with T5Config.positions"):
        configurables.load(files, [], [], "train")


# Changes to the quickstart for a model that is no encoder-decoder.
OTHERS = {
    "encoder_only_base": ["train.model=@EncoderOnly()", "MaskedLM.inputs_length=64"],
    **{
        name: ["train.model=@DecoderOnly()", "Causal.targets_length=64"]
        for name in ("decoder_only_base", "llama_style_base", *DECODERS)
    },
    **{name: ["train.model=@EncoderOnly()", "MaskedLM.inputs_length=64"] for name in ENCODERS},
}


@pytest.mark.parametrize("path", MODEL_FILES)
def test_model_files_have_the_published_number_of_parameters(path):
    bindings = OTHERS.get(path.stem, [])
    files = ["gin/run/quickstart.gin", str(path)]
    if bindings:
        objective = bindings[1].partition(".")[0]
        bindings = [*bindings, f"Task.objective=@{objective}()"]
    (run,) = configurables.load(files, bindings, [], "train")
    counted = sum(math.prod(box.value.shape) for box in parameters(run.model).values())
    if path.stem in PUBLISHED:
        assert counted == count_of(path.stem)
    elif path.stem in DECODERS:
        assert counted == DECODERS[path.stem]
    elif path.stem.startswith("t5gemma"):
        assert counted == count_of_t5gemma(path.stem)
    elif path.stem in ENCODERS:
        assert counted == ENCODERS[path.stem][1]
    elif path.stem == "switch_style_base":
        # Seven more experts than base in each of 24 layers, and the routers.
        more = 24 * (7 * 3 * 768 * 2048 + 768 * 8)
        assert counted == count_of("t5_1_1_base") + more
        assert round(counted / 1e9, 2) == 1.04
    else:
        assert path.stem in {*OTHERS, "quickstart"}

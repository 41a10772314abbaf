"""The model files in gin/ have the published numbers of parameters."""

import math
import pathlib

import pytest

from t5lite import configurables
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


def test_the_terms_add_up_to_the_count_of_transformers():
    assert {name: count_of(name) for name in COUNTED} == COUNTED


def bound_in(path):
    bindings = [line.partition(" = ") for line in path.read_text().splitlines()]
    return [name for name, _, _ in bindings if name.startswith("T5Config.")]


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.gin")), ids=lambda path: path.stem)
def test_model_files_bind_the_same_choices_so_that_one_replaces_another(path):
    of_size = {"T5Config.dtype", "T5Config.scan_unroll"}
    first = set(bound_in(MODELS / "t5_1_1_base.gin"))
    assert set(bound_in(path)) - of_size == first


# Changes to the quickstart for a model that is no encoder-decoder.
OTHERS = {
    "encoder_only_base": ["train.model=@EncoderOnly()", "MaskedLM.inputs_length=64"],
    "decoder_only_base": ["train.model=@DecoderOnly()", "Causal.targets_length=64"],
    "llama_style_base": ["train.model=@DecoderOnly()", "Causal.targets_length=64"],
}


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.gin")), ids=lambda path: path.stem)
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
    elif path.stem == "switch_style_base":
        # Seven more experts than base in each of 24 layers, and the routers.
        more = 24 * (7 * 3 * 768 * 2048 + 768 * 8)
        assert counted == count_of("t5_1_1_base") + more
        assert round(counted / 1e9, 2) == 1.04
    else:
        assert path.stem in {*OTHERS, "quickstart"}

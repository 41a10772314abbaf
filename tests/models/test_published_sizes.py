"""The model files in gin/ have as many parameters as what was published."""

import math
import pathlib

import pytest

from t5lite import configurables
from t5lite.models.architectures import parameters

MODELS = pathlib.Path(__file__).parent.parent.parent / "gin" / "models"

# Of the checkpoints on Hugging Face: what `num_parameters` of the loaded model counts.
PUBLISHED = {
    "t5_1_0_small": 60_506_624,
    "t5_1_0_base": 222_903_552,
    "t5_1_0_large": 737_668_096,
    "t5_1_0_3b": 2_851_598_336,
    "t5_1_0_11b": 11_307_321_344,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "mt5_large": 1_229_581_312,
    "mt5_xl": 3_742_619_648,
    "mt5_xxl": 12_921_057_280,
    "byt5_small": 299_637_760,
    "byt5_base": 581_653_248,
    "ul2": 19_459_613_696,
}


# What the quickstart's task becomes for a model that is no encoder-decoder.
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
    assert counted == PUBLISHED.get(path.stem, counted)
    assert counted > 0

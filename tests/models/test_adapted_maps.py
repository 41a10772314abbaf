import pathlib
import re

import pytest

from t5lite import configurables
from t5lite.models.adapted_maps import adapted_maps, added_names
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.bottleneck import Bottleneck
from t5lite.models.ia3 import IA3
from t5lite.models.lora import LoRA
from t5lite.models.model import parameters
from t5lite.training.trainable import trainable_names
from tests import small
from tests.models.families import FAMILIES
from tests.proofs import proofs_but

FILES = sorted(pathlib.Path("gin/adapters").glob("*.gin"))
MODELS = {
    "t5": EncoderDecoder(small.config()),
    "umt5": EncoderDecoder(small.config(positions="layer_bias")),
    "longt5": EncoderDecoder(small.config(encoder_attention="transient_global")),
    **FAMILIES,
}


@pytest.mark.parametrize("name", proofs_but(("t5", "t5gemma_2"), MODELS))
def test_default_targets_are_found_in_every_family(name):
    model = MODELS[name]
    config = model.config
    adapters = (LoRA(), IA3(), Bottleneck())
    adapted = model.clone(config=config.__class__(**{**vars(config), "adapters": adapters}))
    maps = adapted_maps(adapted)
    stacks = {"encoder", "decoder"} if model.has_encoder else {"decoder"}
    attention = [stack for stack in stacks if stack == "encoder"]
    attention += ["decoder_self"] + ["decoder_cross"] * config.has_cross_attention
    of_attention = [one for full, one in maps.items() if "attention/" in full]
    assert len(of_attention) == 4 * len(attention)
    assert {full for full in maps if "/mlp/" in full} == {f"{s}/layers/mlp/wo" for s in stacks}
    network = {f"bottleneck_{part}" for part in ("down", "down_bias", "up", "up_bias")}
    for full, one in maps.items():
        expected = {
            "query": {"lora_down", "lora_up"},
            "value": {"lora_down", "lora_up", "ia3_scale"},
            "key": {"ia3_scale"},
            "out": network,
            "wo": {"ia3_scale", *network},
        }[full.rpartition("/")[2]]
        assert one.added.keys() == expected
        assert one.own.keys() == {"kernel"}
        assert one.stacked_layers


def test_gin_files_of_adapters_train_what_the_method_trains():
    assert [path.stem for path in FILES] == [
        "adalora",
        "bottleneck",
        "dora",
        "ia3",
        "lora",
        "norms",
        "p_tuning",
        "pissa",
        "prefix",
        "prompt",
    ]
    for path in FILES:
        files = ["gin/run/quickstart.gin", str(path)]
        (run,) = configurables.load(files, [], [], "train")
        params = list(parameters(run.model))
        trained = trainable_names("train.trainable", run.trainable, params)
        added = added_names(run.model)
        if path.stem == "norms":
            assert set(trained) == {name for name in params if "norm/" in name}
            continue
        assert set(trained) == {name for name in added if "lora_initial" not in name}, path
        assert all(re.search("lora|ia3|bottleneck|prefix_|prompt_", name) for name in added)

"""A converted model as a gin file that run files include."""

import dataclasses
from typing import Any

from t5lite.data.text.vocabularies import Vocabulary
from t5lite.models.adalora import AdaLoRA
from t5lite.models.bottleneck import Bottleneck
from t5lite.models.config import T5Config
from t5lite.models.ia3 import IA3
from t5lite.models.lora import LoRA
from t5lite.models.model import Model
from t5lite.models.prefix_tuning import PrefixTuning
from t5lite.models.prompt_tuning import PromptTuning, PTuning

# Adapters that gin files name without their modules.
_PUBLIC = (LoRA, AdaLoRA, IA3, Bottleneck, PrefixTuning, PromptTuning, PTuning)
# Fields that belong to a run and not to a model.
_OF_RUNS = ("attention", "dropout_rate", "dtype", "remat", "scan_unroll")


def model_gin(model: Model, vocabulary: Vocabulary | None, vocabulary_path: str) -> str:
    """Returns the text of a gin file with the model, and the vocabulary if there is one.

    Args:
        vocabulary_path: of the copy of the vocabulary.
    """
    kind = type(model).__name__
    lines = [
        "# Written by t5lite convert. Name it after a run file, with train.initial_checkpoint.",
        f"train.model = @{kind}()",
        f"{kind}.config = @T5Config()",
    ]
    if model.classes is not None:
        lines.append(f"{kind}.classes = @Classes()")
        lines += [f"Classes.{k} = {v!r}" for k, v in dataclasses.asdict(model.classes).items()]
    if model.config.encoder_attention == "transient_global":
        lines.append("train.packed = False")
    for field in dataclasses.fields(T5Config):
        value = getattr(model.config, field.name)
        if field.name == "adapters":
            lines += _adapters(model)
        elif field.name not in _OF_RUNS:
            lines.append(f"T5Config.{field.name} = {value!r}")
    if vocabulary is not None:
        name = type(vocabulary).__name__
        lines.append(f"Task.vocabulary = @{name}()")
        described = vocabulary.describe()
        if "path" in described:
            lines += [f"VOCABULARY = {vocabulary_path!r}", f"{name}.path = %VOCABULARY"]
        special = described.pop("special", {})
        rest = {k: v for k, v in described.items() if k not in ("kind", "path")}
        lines += [f"{name}.{key} = {value!r}" for key, value in rest.items()]
        if special:
            lines.append(f"{name}.special = @SpecialTokens()")
            lines += [f"SpecialTokens.{key} = {value!r}" for key, value in special.items()]
    return "\n".join(lines) + "\n"


def _adapters(model: Model) -> list[str]:
    """Returns the statements that bind the adapters, each with a scope of its own."""
    lines: list[str] = []
    names = []
    for number, adapter in enumerate(model.config.adapters):
        kind = type(adapter)
        public = kind.__name__ if kind in _PUBLIC else f"{kind.__module__}:{kind.__qualname__}"
        name = f"adapter{number}/{public}"
        names.append(f"@{name}()")
        fields: Any = adapter
        lines += [
            f"{name}.{field.name} = {getattr(adapter, field.name)!r}"
            for field in dataclasses.fields(fields)
        ]
    return [f"T5Config.adapters = ({''.join(f'{name}, ' for name in names).strip()})", *lines]

"""A converted model as a gin file that run files include."""

import dataclasses

from t5lite.core.errors import UserError
from t5lite.data.text.vocabularies import Vocabulary
from t5lite.models.config import T5Config
from t5lite.models.model import Model

# Fields that belong to a run and not to a model.
_OF_RUNS = ("attention", "dropout_rate", "dtype", "remat", "scan_unroll")


def model_gin(model: Model, vocabulary: Vocabulary | None, vocabulary_path: str) -> str:
    """Returns the text of a gin file with the model, and the vocabulary if there is one.

    Raises:
        UserError: for a model with adapters, which are objects and not values.
    """
    if model.config.adapters:
        raise UserError(
            "--to=t5lite: T5Config.adapters are not written to model.gin; keep the run's config.gin"
        )
    kind = type(model).__name__
    lines = [
        "# Written by t5lite convert. Name it after a run file, with train.initial_checkpoint.",
        f"train.model = @{kind}()",
        f"{kind}.config = @T5Config()",
    ]
    if model.classes is not None:
        lines.append("EncoderOnly.classes = @Classes()")
        lines += [f"Classes.{k} = {v!r}" for k, v in dataclasses.asdict(model.classes).items()]
    if model.config.encoder_attention == "transient_global":
        lines.append("train.packed = False")
    for field in dataclasses.fields(T5Config):
        value = getattr(model.config, field.name)
        if field.name not in _OF_RUNS:
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

"""A model as plain data, which checkpoints carry, and back."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError, choose
from t5lite.models.adapters import adapter_from_description, describe_adapter
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from t5lite.models.classifier import Classes
from t5lite.models.config import T5Config
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from t5lite.models.model import Model

ARCHITECTURES = {
    kind.__name__: kind
    for kind in (EncoderDecoder, EncoderOnly, DecoderOnly, EncoderDecoderClassifier)
}

# Fields of `T5Config` that may differ from training without changing what parameters mean.
FREE = (
    "vocab_size",
    "dropout_rate",
    "capacity_factor",
    "attention",
    "dtype",
    "remat",
    "scan_unroll",
)


def describe(model: Model) -> dict[str, Any]:
    """Returns the whole model as JSON types.

    >>> model = EncoderOnly(T5Config(
    ...     vocab_size=384, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1))
    >>> from_description(describe(model)) == model
    True
    """
    fields = {f.name: getattr(model.config, f.name) for f in dataclasses.fields(model.config)}
    fields["adapters"] = [describe_adapter(adapter) for adapter in model.config.adapters]
    described: dict[str, Any] = {"architecture": type(model).__name__, "config": fields}
    if model.classes is not None:
        described["classes"] = dataclasses.asdict(model.classes)
    return described


def model_of(about: Mapping[str, Any], owner: str) -> Model:
    """Returns the model that a checkpoint describes.

    Raises:
        UserError: if there is no description, or one that this version does not know.
    """
    if "model" not in about:
        raise UserError(f"{owner} is from an older t5lite, which did not save a model description")
    return from_description(about["model"])


def check_same(about: Mapping[str, Any], model: Model, owner: str) -> None:
    """Checks that a checkpoint's parameters mean to `model` what they meant in training.

    Shapes are not enough: an activation, positions or a norm's epsilon have none. A field that the
    checkpoint's version did not have yet had its default.

    Raises:
        UserError: if the model differs from the checkpoint's description, with both values.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(T5Config)}
    # As a checkpoint stores them.
    saved, mine, usual = json.loads(
        json.dumps([about.get("model", {}), describe(model), defaults], default=lambda _: None)
    )
    pairs = {"architecture": (saved.get("architecture"), mine["architecture"])}
    for name, value in mine["config"].items():
        if name not in FREE:
            theirs = saved.get("config", {}).get(name, usual[name])
            pairs[f"T5Config.{name}"] = (theirs, value)
    for name, (theirs, ours) in pairs.items() if saved else ():
        if theirs != ours:
            raise UserError(
                f"{owner} was trained with {name} {theirs!r}, got {ours!r}; use the run file or "
                "model.gin of that training"
            )


def from_description(described: dict[str, Any]) -> Model:
    """Returns the model that `describe` was given.

    Raises:
        UserError: if this version does not know it, or an adapter cannot be imported.
    """
    try:
        kind: Any = choose("the model's architecture", described["architecture"], ARCHITECTURES)
        # JSON has lists instead of tuples.
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in described["config"].items()
        }
        adapters = fields.get("adapters", ())
        fields["adapters"] = tuple(adapter_from_description(each) for each in adapters)
        config = T5Config(**fields)
        if "classes" in described:
            classified: Model = kind(config, Classes(**described["classes"]))
            return classified
    except (KeyError, TypeError) as error:
        raise UserError(
            f"the checkpoint's model is not one that this version of t5lite knows: {error}"
        ) from error
    model: Model = kind(config)
    return model

"""A model as plain data, which checkpoints carry, and back."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError, choose
from t5lite.models.architectures import (
    Classes,
    DecoderOnly,
    EncoderDecoder,
    EncoderOnly,
    Model,
)
from t5lite.models.config import T5Config

ARCHITECTURES = {kind.__name__: kind for kind in (EncoderDecoder, EncoderOnly, DecoderOnly)}

# Fields of `T5Config` that may be others than in training without parameters meaning another thing.
FREE = ("vocab_size", "dropout_rate", "capacity_factor", "dtype", "remat", "scan_unroll")


def describe(model: Model) -> dict[str, Any]:
    """Returns all that the model is, for JSON.

    >>> model = EncoderOnly(T5Config(
    ...     vocab_size=384, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1))
    >>> from_description(describe(model)) == model
    True
    """
    config = dataclasses.asdict(model.config)
    described: dict[str, Any] = {"architecture": type(model).__name__, "config": config}
    if isinstance(model, EncoderOnly) and model.classes is not None:
        described["classes"] = dataclasses.asdict(model.classes)
    return described


def model_of(about: Mapping[str, Any], owner: str) -> Model:
    """Returns the model that a checkpoint says it is of.

    Raises:
        UserError: where it says nothing, or what this version does not know.
    """
    if "model" not in about:
        raise UserError(f"{owner} is of an older t5lite, which did not save what its model is")
    return from_description(about["model"])


def check_same(about: Mapping[str, Any], model: Model, owner: str) -> None:
    """Checks that a checkpoint's parameters mean to `model` what they meant in training.

    Shapes alone do not tell: an activation, positions or a norm's epsilon have none.

    Raises:
        UserError: where the model differs from what the checkpoint says of its own, both printed.
    """
    # As a checkpoint holds them.
    saved, mine = json.loads(json.dumps([about.get("model", {}), describe(model)]))
    pairs = {"architecture": (saved.get("architecture"), mine["architecture"])}
    for name, value in saved.get("config", {}).items():
        if name not in FREE and name in mine["config"]:
            pairs[f"T5Config.{name}"] = (value, mine["config"][name])
    for name, (theirs, ours) in pairs.items() if saved else ():
        if theirs != ours:
            raise UserError(
                f"{owner} was trained with {name} {theirs!r}, got {ours!r}; use the run file or "
                "model.gin that is its own"
            )


def from_description(described: dict[str, Any]) -> Model:
    """Returns the model that `describe` was given.

    Raises:
        UserError: where it is not one that this version knows.
    """
    try:
        kind: Any = choose("the model's architecture", described["architecture"], ARCHITECTURES)
        activations = tuple(described["config"]["mlp_activations"])
        config = T5Config(**{**described["config"], "mlp_activations": activations})
        if "classes" in described:
            return EncoderOnly(config, Classes(**described["classes"]))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"the checkpoint's model is not one that this version of t5lite knows: {error}"
        ) from error
    model: Model = kind(config)
    return model

"""Which models a family of transformers has a class for."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from t5lite.core.errors import UserError
from t5lite.models.config import T5Config
from t5lite.models.config_fields import ENCODER_FIELDS, T5Fields
from t5lite.models.model import Model

# Fields that belong to a run, and those without an effect on models with rotary positions and
# without experts.
_FREE_FIELDS = frozenset(
    [
        "dropout_rate",
        "dtype",
        "remat",
        "scan_unroll",
        "attention",
        "capacity_factor",
        "num_buckets",
        "max_distance",
        "local_radius",
        "global_block_size",
    ]
)
# Fields that the configurations of two stacks, or of a decoder, express.
_STACK_FIELDS = frozenset(
    [
        "vocab_size",
        "embed_dim",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "mlp_dim",
        "mlp_activations",
        "norm_epsilon",
        "rotary_base",
        "rotary_base_windowed",
        "rotary_scaling",
        "attention_scale",
        "attention_soft_cap",
        "tied_logits",
        "start_token",
    ]
)
DECODER_FIELDS = _STACK_FIELDS | {"num_decoder_layers", "decoder_windows"}
TWO_STACK_FIELDS = DECODER_FIELDS.union(
    ["num_encoder_layers", "encoder_windows", "logits_soft_cap"],
    [f"encoder_{name}" for name in ENCODER_FIELDS],
)


def no_counterpart(family: str, config: T5Fields, field: str) -> UserError:
    """Returns the error for a field of `T5Config` that a family cannot express."""
    return UserError(
        f"--to=huggingface: {family} of transformers has no counterpart of T5Config.{field} "
        f"{getattr(config, field)!r:.80}; keep the checkpoint in t5lite's format"
    )


def check_writable(
    model: Model,
    family: str,
    fixed: Mapping[str, Any],
    expressed: Collection[str],
    *,
    has_classes: bool = False,
) -> None:
    """Checks that a family can express a model.

    Args:
        family: its name, for messages.
        fixed: fields that have one value in the family.
        expressed: fields that its configuration holds. Others must have their default.
        has_classes: whether the family has models of classes.

    Raises:
        UserError: naming the first field that the family cannot express, or the model's classes.
    """
    if model.classes is not None and not has_classes:
        raise UserError(
            f"--to=huggingface: {family} of transformers has no counterpart of Classes; keep the "
            "checkpoint in t5lite's format"
        )
    for field in dataclasses.fields(T5Config):
        if field.name in expressed or field.name in _FREE_FIELDS:
            continue
        if getattr(model.config, field.name) != fixed.get(field.name, field.default):
            raise no_counterpart(family, model.config, field.name)

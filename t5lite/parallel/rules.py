"""Sharding rules as data: which mesh axes split which logical axes of arrays.

Parameters and activations name their dimensions; only these rules map names to devices.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import PartitionSpec

from t5lite.core.errors import UserError, check_choice

Axes = tuple[str | None, ...]
Rules = Mapping[str, tuple[str, ...]]

# `mesh.Mesh` documents what each axis splits. The axis on the slowest network comes first.
MESH_AXES = ("dcn", "data", "fsdp", "expert", "sequence", "tensor")

# Logical axis -> the mesh axes that split it.
RULES: Rules = {
    "batch": ("dcn", "data", "fsdp", "expert"),
    "length": ("sequence",),
    # Keys and values are not split: every query needs all of them.
    "key_length": (),
    "activation_embed": (),
    # Rows of the batch after tokens are sent to their experts.
    "expert_batch": ("dcn", "data", "fsdp"),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "expert_scores": (),
    "embed": ("fsdp",),
    "kv": (),
    "relpos_buckets": (),
    "layers": (),
    "positions": (),
    "token_types": (),
    "classes": (),
    "following_classes": (),
    "tasks": (),
    "teacher_embed": (),
    # Dimensions that adapters add, such as ranks.
    "adapter": (),
    "adapter_inputs": (),
    "adapter_directions": (),
}

# Logical axes along which every row is computed independently.
ROWS = {"batch", "expert_batch"}

# The axes of activations that models constrain. The axes of parameters depend on the model.
ACTIVATION_AXES: tuple[Axes, ...] = (
    ("batch", "length", "activation_embed"),
    ("batch", "length", "heads", "kv"),
    ("batch", "key_length", "heads", "kv"),
    ("batch", "length", "mlp"),
    ("batch", "length", "vocab"),
    ("experts", "expert_batch", None, "activation_embed"),
    ("experts", "expert_batch", None, "mlp"),
)


def with_rules(changes: Sequence[Any]) -> Rules:
    """Returns `RULES` changed by pairs of a logical axis and a mesh axis, several of them, or None.

    Raises:
        UserError: for an unknown name, or if one mesh axis would split two dimensions of an
            activation.

    >>> with_rules([("embed", ["fsdp", "data"]), ("mlp", None)])["embed"]
    ('fsdp', 'data')
    """
    rules = dict(RULES)
    for pair in changes:
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise UserError(
                "Mesh.rules must be pairs (logical axis, mesh axes) as in "
                f"[('embed', ['fsdp', 'data'])], got {pair!r}"
            )
        name, given = pair
        check_choice("Mesh.rules: logical axis", name, rules)
        if not isinstance(given, str | tuple | list | None):
            raise UserError(
                f"Mesh.rules: {name!r} needs a mesh axis, a list of them or None, got {given!r}"
            )
        axes = (given,) if isinstance(given, str) else tuple(given or ())
        for axis in axes:
            check_choice(f"Mesh.rules: mesh axis of {name!r}", axis, MESH_AXES)
        rules[name] = axes
    for activation in ACTIVATION_AXES:
        spec_of(activation, rules, owner="Mesh.rules")
    return rules


def spec_of(axes: Axes, rules: Rules, *, owner: str) -> PartitionSpec:
    """Returns the mesh axes that split each dimension of an array, given their logical names.

    Raises:
        UserError: if one mesh axis would split two of them.
    """
    seen: dict[str, str | None] = {}
    for name in axes:
        for axis in rules[name] if name is not None else ():
            if axis in seen:
                raise UserError(
                    f"{owner}: mesh axis {axis!r} cannot split both {seen[axis]!r} and {name!r} of "
                    f"an array with the axes {', '.join(map(str, axes))}; change Mesh.rules"
                )
            seen[axis] = name
    return PartitionSpec(*(rules[name] or None if name is not None else None for name in axes))

"""The lengths in config.json that no model here is limited by, kept for programs that are.

Checkpoints carry them as `about["lengths"]`, also those of runs that start from converted ones.
T5's relative positions and rotations have no last position, so `T5Config` has no such field.
"""

from collections.abc import Mapping
from typing import Any

from t5lite.interop.field_groups import FieldGroups

_NAMES = ("max_position_embeddings", "n_positions")


def read_lengths(settings: Mapping[str, Any], groups: FieldGroups) -> dict[str, Any]:
    """Returns the lengths of a config.json, each where it stands.

    >>> groups = FieldGroups(applied=frozenset(), parts={"decoder": FieldGroups(
    ...     applied=frozenset({"max_position_embeddings"}))})
    >>> read_lengths({"decoder": {"max_position_embeddings": 8192, "vocab_size": 9}}, groups)
    {'decoder': {'max_position_embeddings': 8192}}
    """
    found: dict[str, Any] = {
        name: settings[name]
        for name in _NAMES
        if name in groups.known and type(settings.get(name)) is int
    }
    for name, group in groups.parts.items():
        part = settings.get(name)
        if isinstance(part, Mapping) and (inner := read_lengths(part, group)):
            found[name] = inner
    return found


def with_lengths(
    settings: Mapping[str, Any], lengths: Mapping[str, Any], groups: FieldGroups
) -> dict[str, Any]:
    """Returns settings with the lengths that they do not have and their family does.

    >>> groups = FieldGroups(applied=frozenset({"n_positions"}))
    >>> with_lengths({"d_model": 8}, {"n_positions": 512, "decoder": {"n_positions": 3}}, groups)
    {'d_model': 8, 'n_positions': 512}
    """
    whole = dict(settings)
    for name, value in lengths.items():
        part = whole.get(name)
        if isinstance(value, Mapping):
            if isinstance(part, Mapping) and name in groups.parts:
                whole[name] = with_lengths(part, value, groups.parts[name])
        elif part is None and name in groups.known:
            whole[name] = value
    return whole

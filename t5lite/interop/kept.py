"""Parts of a foreign checkpoint that no model here has, kept to be written back unchanged.

They are in a file beside the t5lite checkpoint, with the settings that belong to them.
"""

import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from t5lite.core.errors import UserError, shown
from t5lite.core.json_values import decode_json
from t5lite.interop.foreign import Kept, StoredArray
from t5lite.interop.tensor_files import tensors_of

KEPT_FILE = "kept.safetensors"


def split_aside(
    tensors: Mapping[str, StoredArray], parts: Collection[str]
) -> tuple[dict[str, StoredArray], dict[str, StoredArray]]:
    """Returns the tensors of a model, and those of other parts under names that begin with these.

    Args:
        parts: such as `vision_tower.`.
    """
    rest = {}
    aside = {}
    for name, stored in tensors.items():
        starts = [name.index(part) for part in parts if part in name]
        if starts:
            aside[name[min(starts) :]] = stored
        else:
            rest[name] = stored
    return rest, aside


def stored_in_memory(array: np.ndarray) -> StoredArray:
    """Returns an array as a stored one."""
    return StoredArray(array.shape, array.dtype.name, lambda rows: array[rows])


def write_kept(folder: pathlib.Path, kept: Kept) -> None:
    """Writes what is kept beside a t5lite checkpoint, each tensor in its own dtype."""
    import safetensors.numpy

    tensors = {name: np.ascontiguousarray(part.read(...)) for name, part in kept.tensors.items()}
    metadata = {"settings": json.dumps(dict(kept.settings))}
    safetensors.numpy.save_file(tensors, folder / KEPT_FILE, metadata=metadata)


def read_kept(folder: pathlib.Path) -> Kept | None:
    """Returns what is kept beside a t5lite checkpoint; None if there is no file.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / KEPT_FILE
    if not path.is_file():
        return None
    tensors = tensors_of(path)
    import safetensors

    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    try:
        settings = decode_json(metadata.get("settings", "{}"))
    except ValueError as error:
        raise UserError(f"{path} must hold settings, got {shown(str(error))}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold settings, got {type(settings).__name__}")
    return Kept(tensors=tensors, settings=settings)


def merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with further ones, also in configurations inside of them.

    >>> merged({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}})
    {'a': 1, 'b': {'c': 2, 'd': 3}}
    """
    whole = dict(settings)
    for name, value in more.items():
        own = whole.get(name)
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            value = merged(own, value)
        whole[name] = value
    return whole

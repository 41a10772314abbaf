"""The files of a T5X checkpoint: which arrays they hold, and how to read one."""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import tensorstore

from t5lite.core.errors import UserError, reason_of, shown
from t5lite.core.json_values import MAX_NESTING
from t5lite.core.lazy import by_name
from t5lite.interop.foreign import Rows, StoredArray
from t5lite.interop.tensor_files import read_json

# T5X's file of all small arrays and, in the older format, of all arrays that are not partitioned.
MSGPACK = "checkpoint"
PLACEHOLDER = "PLACEHOLDER://"
# Earlier versions saved bfloat16 as uint16.
FIRST_VERSION = 3
_SPEC = {"driver", "kvstore", "metadata"}
# T5X writes chunks of 64 MiB.
MAX_CHUNK_NUMBERS = 1 << 26


def is_checkpoint(path: pathlib.Path) -> bool:
    """Returns whether a path looks like a checkpoint of T5X."""
    if path.is_file():
        return path.suffix == ".msgpack" or path.name == MSGPACK
    folder = _state_folder(path)
    return (folder / MSGPACK).is_file() or (
        path.name.startswith("checkpoint_") and (folder / "_METADATA").is_file()
    )


def stored_arrays(path: pathlib.Path) -> dict[str, StoredArray]:
    """Returns every array under `target/` and `state/`, by its path.

    Raises:
        UserError: if a file is damaged, missing, or older than version 3.
    """
    if path.is_file():
        return _from_msgpack(path)
    folder = _state_folder(path)
    if (folder / MSGPACK).is_file():
        return _from_msgpack(folder / MSGPACK)
    return _from_orbax(folder)


def _state_folder(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the arrays: Orbax checkpoints of T5X have them in a subfolder."""
    return path / "state" if (path / "state").is_dir() else path


def _from_msgpack(path: pathlib.Path) -> dict[str, StoredArray]:
    try:
        # NOTE: Flax's msgpack holds only arrays and numbers; reading it runs no code.
        tree = flax.serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises many kinds
        raise UserError(
            f"{path} must be a whole msgpack file of T5X, got one that is truncated or damaged "
            f"({type(error).__name__}: {reason_of(error)}); download it again"
        ) from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must be a msgpack file of T5X, got a {type(tree).__name__}")
    _check_tree(tree, path)
    if "optimizer" in tree:
        version = tree.get("version", 0)
        if not isinstance(version, int | np.integer) or version < FIRST_VERSION:
            raise UserError(
                f"{path} must be of T5X's checkpoint version {FIRST_VERSION} or later, got "
                f"{version}; save it again with T5X"
            )
        tree = tree["optimizer"]
    if not isinstance(tree, dict) or not isinstance(tree.get("target"), dict):
        raise UserError(f"{path} must hold the parameters of a model under 'target'")
    flat = flax.traverse_util.flatten_dict(tree, sep="/", is_leaf=lambda _, v: _is_spec(v))
    return {
        name: _stored(value, path, name)
        for name, value in flat.items()
        if value is not None and name.partition("/")[0] in ("target", "state")
    }


def _check_tree(tree: dict[Any, Any], path: pathlib.Path, depth: int = 0) -> None:
    """Raises a UserError for keys that are no names, or levels without end."""
    if depth > MAX_NESTING:
        raise UserError(f"{path} must have at most {MAX_NESTING} levels of names")
    for key, value in tree.items():
        if not isinstance(key, str):
            raise UserError(f"{path} must name its arrays, got the key {key!r:.80}")
        if isinstance(value, dict):
            _check_tree(value, path, depth + 1)


def _is_spec(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= _SPEC


def _stored(value: Any, path: pathlib.Path, name: str) -> StoredArray:
    folder = path.parent
    where: Any = None
    if isinstance(value, str) and value.startswith(PLACEHOLDER):
        where = value.removeprefix(PLACEHOLDER)
    elif _is_spec(value):
        kvstore = value["kvstore"]
        where = kvstore.get("path", value.get("path")) if isinstance(kvstore, dict) else kvstore
    if where is not None:
        # T5X writes relative paths inside the folder.
        inside = pathlib.PurePath(str(where).rstrip("/"))
        if not inside.parts or inside.is_absolute() or ".." in inside.parts:
            raise UserError(
                f"{path}: {shown(name)} must be in a folder beside it, got {where!r:.80}"
            )
        return _zarr(folder / inside, f"{path}: {shown(name)}")
    if not isinstance(value, np.ndarray | np.generic | int | float):
        raise UserError(f"{path}: {shown(name)} must be an array, got {type(value).__name__}")
    array = np.asarray(value)
    return StoredArray(array.shape, array.dtype.name, lambda rows: array[rows])


def _zarr(folder: pathlib.Path, owner: str) -> StoredArray:
    if not folder.is_dir():
        raise UserError(f"{owner} must be in {shown(str(folder))}, which does not exist")
    _check_chunks(folder, owner)
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"}}
    try:
        opened = tensorstore.open(spec, open=True).result()
    except ValueError as error:
        raise UserError(
            f"{owner}: {shown(str(folder))} must be a zarr array: {reason_of(error)}"
        ) from error
    read = _guarded(lambda rows: opened[rows].read().result(), owner)
    return StoredArray(tuple(opened.shape), opened.dtype.numpy_dtype.name, read)


def _check_chunks(folder: pathlib.Path, owner: str) -> None:
    """Raises a UserError for chunks of other than 1 to `MAX_CHUNK_NUMBERS` numbers.

    TensorStore allocates a whole chunk, and ends the process if there is no memory for it.
    """
    path = folder / ".zarray"
    chunks = read_json(path).get("chunks") if path.is_file() else []
    if not isinstance(chunks, list) or not all(type(size) is int and size > 0 for size in chunks):
        raise UserError(f"{owner}: {path} must have sizes of chunks, got {chunks!r:.80}")
    if math.prod(chunks) > MAX_CHUNK_NUMBERS:
        raise UserError(
            f"{owner}: {path} must have chunks of at most {MAX_CHUNK_NUMBERS:,} numbers, got "
            f"{chunks!r:.80}"
        )


def _from_orbax(folder: pathlib.Path) -> dict[str, StoredArray]:
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler()
    try:
        tree = handler.metadata(folder).tree
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{folder} must be a checkpoint: {reason_of(error)}") from error

    def reader(name: str, metadata: Any) -> Callable[[Rows], np.ndarray]:
        def read(rows: Rows) -> np.ndarray:
            item = flax.traverse_util.unflatten_dict({name: metadata}, sep="/")
            args = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
            restored = handler.restore(
                folder,
                args=ocp.args.PyTreeRestore(
                    item=item,
                    restore_args=flax.traverse_util.unflatten_dict(args, sep="/"),
                    partial_restore=True,
                ),
            )
            return np.asarray(by_name(restored)[name])[rows]

        return _guarded(read, f"{folder}: {name}")

    found: Mapping[str, Any] = by_name(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        name: StoredArray(
            tuple(metadata.shape),
            np.dtype(metadata.dtype).name,
            reader(name, metadata),
            reads_rows=False,
        )
        for name, metadata in found.items()
        if hasattr(metadata, "shape")
    }


def _guarded(read: Callable[[Rows], Any], owner: str) -> Callable[[Rows], np.ndarray]:
    def checked(rows: Rows) -> np.ndarray:
        try:
            return np.asarray(read(rows))
        except (ValueError, OSError) as error:
            raise UserError(f"{owner} cannot be read: {reason_of(error)}") from error

    return checked

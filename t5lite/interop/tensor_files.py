"""Folders of safetensors files, one or many with an index, read and written tensor by tensor."""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.core.errors import UserError
from t5lite.interop.foreign import Rows, Shape, Stored

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What others save next to it, or instead of it.
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# Bytes in one file; it is in memory as a whole while it is written.
FILE_BYTES = 1 << 30


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a JSON file holds.

    Raises:
        UserError: where it is not there or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; a checkpoint of Hugging Face has one") from error
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} must be a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def stored_tensors(folder: pathlib.Path) -> dict[str, Stored]:
    """Returns all tensors below a folder, none of them read.

    Raises:
        UserError: where there is no safetensors file, one is cut off or damaged, or tensors that
            the index names are not there.
    """
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise UserError(f"{folder / INDEX} must have a weight_map from tensors to files")
        files = sorted({str(name) for name in places.values()})
        if strange := [name for name in files if pathlib.PurePath(name).name != name]:
            raise UserError(f"{folder / INDEX} must name files beside it, got {strange[0]!r}")
    elif (folder / SINGLE).is_file():
        files, places = [SINGLE], None
    else:
        found = [name for name in PICKLES if (folder / name).is_file()]
        what = f"only {found[0]}, which is not read: pickles run code" if found else "none"
        raise UserError(
            f"{folder} must hold {SINGLE} or {INDEX}, got {what}; save the model again with "
            "save_pretrained(safe_serialization=True)"
        )
    held = {file: _tensors_of(folder / file) for file in files}
    if places is None:
        return held[SINGLE]
    tensors: dict[str, Stored] = {}
    for name, file in places.items():
        if name not in held[file]:
            raise UserError(f"{folder / INDEX} has {name} in {file}, which does not hold it")
        tensors[name] = held[file].pop(name)
    if left := sorted(name for rest in held.values() for name in rest):
        raise UserError(f"{folder} holds {left[0]} where {INDEX} does not name it")
    return tensors


def _tensors_of(path: pathlib.Path) -> dict[str, Stored]:
    import safetensors

    def open_file() -> Any:
        try:
            # Read, not mapped: mapped pages would count as memory in use.
            return safetensors.safe_open(path, framework="numpy", backend="pread")
        except FileNotFoundError as error:
            raise UserError(f"{path} is not there, but the index names it") from error
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(
                f"{path} must be a whole safetensors file, got one that is cut off or damaged "
                f"({error}); fetch it again"
            ) from error

    def reader(name: str) -> Callable[[Rows], np.ndarray]:
        def read(rows: Rows) -> np.ndarray:
            with open_file() as file:
                return np.asarray(file.get_slice(name)[rows])

        return read

    with open_file() as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        return {
            name: Stored(
                tuple(part.get_shape()),
                _DTYPES.get(part.get_dtype(), part.get_dtype()),
                reader(name),
            )
            for name, part in slices.items()
        }


def write_tensors(
    folder: pathlib.Path,
    groups: Sequence[tuple[Mapping[str, Shape], Callable[[], Mapping[str, np.ndarray]]]],
    dtype: np.dtype[Any],
) -> None:
    """Writes tensors into one file, or several of about `FILE_BYTES` with an index.

    Args:
        groups: names and shapes of tensors that are made together, and what makes them.
    """
    import safetensors.numpy

    sizes = [
        sum(int(np.prod(shape)) * dtype.itemsize for shape in shapes.values())
        for shapes, _ in groups
    ]
    if (free := shutil.disk_usage(folder).free) < sum(sizes):
        raise UserError(
            f"the checkpoint needs {sum(sizes):,} bytes, but {folder.parent} has {free:,} left; "
            "make room or name another --output"
        )
    files = _cut(sizes)
    places: dict[str, str] = {}
    for number, members in enumerate(files, start=1):
        several = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        name = SINGLE if len(files) == 1 else several
        tensors: dict[str, np.ndarray] = {}
        for index in members:
            made = groups[index][1]()
            # Only contiguous arrays are written as they read.
            tensors |= {n: np.ascontiguousarray(array, dtype) for n, array in made.items()}
            del made
        try:
            safetensors.numpy.save_file(tensors, folder / name, metadata={"format": "pt"})
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{folder / name} cannot be written: {error}") from error
        places |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        listing = {
            "metadata": {"total_size": sum(sizes)},
            "weight_map": dict(sorted(places.items())),
        }
        (folder / INDEX).write_text(json.dumps(listing, indent=2) + "\n")


def _cut(sizes: Sequence[int]) -> list[list[int]]:
    """Cuts a sequence of groups into files."""
    files: list[list[int]] = [[]]
    held = 0
    for index, size in enumerate(sizes):
        if files[-1] and held + size > FILE_BYTES:
            files.append([])
            held = 0
        files[-1].append(index)
        held += size
    return files

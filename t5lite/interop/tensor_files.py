"""Folders of safetensors files: one file, or several with an index, tensor by tensor."""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5lite.core.errors import UserError, shown
from t5lite.core.json_values import decode_json, plain_value
from t5lite.interop.foreign import ArrayShape, Rows, StoredArray

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Files of other formats that may be beside it, or replace it.
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# The size of one file, which is in memory as a whole while it is written.
FILE_BYTES = 1 << 30


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a JSON file.

    Raises:
        UserError: if it does not exist, holds no JSON object, or exceeds a limit of `decode_json`.
    """
    try:
        content = plain_value(decode_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; a Hugging Face folder has one") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} must be a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def stored_tensors(folder: pathlib.Path) -> dict[str, StoredArray]:
    """Returns all tensors of a folder, without reading them.

    Raises:
        UserError: if there is no safetensors file, one is truncated or damaged, or does not hold a
            tensor that the index names.
    """
    if (folder / INDEX_FILE).is_file():
        file_of = read_json(folder / INDEX_FILE).get("weight_map")
        listed = file_of.values() if isinstance(file_of, dict) else []
        if not listed or not all(isinstance(name, str) for name in listed):
            raise UserError(f"{folder / INDEX_FILE} must have a weight_map from tensors to files")
        files = sorted(set(listed))
        if strange := [name for name in files if not _is_beside(name)]:
            raise UserError(f"{folder / INDEX_FILE} must name files beside it, got {strange[0]!r}")
    elif (folder / SINGLE_FILE).is_file():
        files = [SINGLE_FILE]
        file_of = None
    else:
        found = [name for name in PICKLES if (folder / name).is_file()]
        what = f"only {found[0]}, which is not read: pickles run code" if found else "none"
        raise UserError(
            f"{folder} must hold {SINGLE_FILE} or {INDEX_FILE}, got {what}; save the model with "
            "save_pretrained(safe_serialization=True)"
        )
    held = {file: tensors_of(folder / file) for file in files}
    if file_of is None:
        return held[SINGLE_FILE]
    tensors: dict[str, StoredArray] = {}
    for name, file in file_of.items():
        if name not in held[file]:
            raise UserError(
                f"{folder / INDEX_FILE} has {shown(name)} in {shown(file)}, which does not hold it"
            )
        tensors[name] = held[file].pop(name)
    if left := sorted(name for rest in held.values() for name in rest):
        raise UserError(f"{folder} holds {shown(left[0])}, which {INDEX_FILE} does not name")
    return tensors


def _is_beside(name: str) -> bool:
    """Whether a name is that of a file in the same folder."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def tensors_of(path: pathlib.Path) -> dict[str, StoredArray]:
    """Returns the tensors of one file, without reading them.

    Raises:
        UserError: if it is missing, truncated or damaged.
    """
    import safetensors

    @contextlib.contextmanager
    def opened() -> Iterator[Any]:
        try:
            # NOTE: mapped pages would count as memory in use, so the file is read.
            with safetensors.safe_open(path, framework="numpy", backend="pread") as file:
                yield file
        except FileNotFoundError as error:
            raise UserError(f"{shown(str(path))} does not exist, but the index names it") from error
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(
                f"{shown(str(path))} must be a whole safetensors file, got one that is truncated "
                f"or damaged ({shown(str(error))}); download it again"
            ) from error

    def reader(name: str) -> Callable[[Rows], np.ndarray]:
        def read(rows: Rows) -> np.ndarray:
            with opened() as file:
                return np.asarray(file.get_slice(name)[rows])

        return read

    with opened() as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        return {
            name: StoredArray(
                tuple(part.get_shape()),
                _DTYPES.get(part.get_dtype(), part.get_dtype()),
                reader(name),
            )
            for name, part in slices.items()
        }


class TensorGroup(NamedTuple):
    """Tensors that are made together: names and shapes, what makes them, and their dtype."""

    shapes: Mapping[str, ArrayShape]
    make: Callable[[], Mapping[str, np.ndarray]]
    dtype: np.dtype[Any]


def write_tensors(folder: pathlib.Path, groups: Sequence[TensorGroup]) -> None:
    """Writes tensors to one file, or to several of about `FILE_BYTES` with an index.

    Raises:
        UserError: if the disk has no room, or a file cannot be written.
    """
    import safetensors.numpy

    sizes = [
        sum(int(np.prod(shape)) * group.dtype.itemsize for shape in group.shapes.values())
        for group in groups
    ]
    if (free := shutil.disk_usage(folder).free) < sum(sizes):
        raise UserError(
            f"the checkpoint needs {sum(sizes):,} bytes, but {folder.parent} has {free:,} left; "
            "free some or choose another --output"
        )
    files = _cut(sizes)
    file_of: dict[str, str] = {}
    for number, indices in enumerate(files, start=1):
        several = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        name = SINGLE_FILE if len(files) == 1 else several
        tensors: dict[str, np.ndarray] = {}
        for index in indices:
            made = groups[index].make()
            dtype = groups[index].dtype
            # safetensors writes the memory of an array, whatever its strides.
            tensors |= {n: np.ascontiguousarray(array, dtype) for n, array in made.items()}
            del made
        try:
            safetensors.numpy.save_file(tensors, folder / name, metadata={"format": "pt"})
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{folder / name} cannot be written: {error}") from error
        file_of |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        listing = {
            "metadata": {"total_size": sum(sizes)},
            "weight_map": dict(sorted(file_of.items())),
        }
        (folder / INDEX_FILE).write_text(json.dumps(listing, indent=2) + "\n")


def _cut(sizes: Sequence[int]) -> list[list[int]]:
    """Distributes consecutive groups over files."""
    files: list[list[int]] = [[]]
    held = 0
    for index, size in enumerate(sizes):
        if files[-1] and held + size > FILE_BYTES:
            files.append([])
            held = 0
        files[-1].append(index)
        held += size
    return files

"""A checkpoint of another program, and how its arrays become t5lite's."""

import dataclasses
import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.core.errors import UserError, shown
from t5lite.core.lazy import LazyArray
from t5lite.data.text.vocabularies import Vocabulary
from t5lite.models.model import Model

ArrayShape = tuple[int, ...]
FLOATS = ("float32", "bfloat16", "float16", "float64")
Rows = slice | types.EllipsisType
View = Callable[[np.ndarray], np.ndarray]
# Bytes of an array that are read at a time.
CHUNK_READ_BYTES = 1 << 26
ALIGNMENT = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """Parts of a checkpoint that no model here has, kept to be written back unchanged.

    Args:
        tensors: by the names that they are written under.
        settings: the fields of config.json that belong to them.
    """

    tensors: Mapping[str, "StoredArray"]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foreign:
    """A checkpoint of any program.

    Args:
        model: the model that the parameters belong to.
        params: the parameters by t5lite name.
        step: training steps taken.
        vocabulary: None if the checkpoint has none.
        opt_state: Adafactor's state by t5lite name; None if it is not read.
        family: the `model_type` of a Hugging Face model.
        kept: what is not converted and may be written back; None if there is nothing.
        lengths: fields of config.json that limit other programs; see `lengths.py`.
        remarks: what a user should know about the checkpoint.
    """

    model: Model
    params: Mapping[str, LazyArray]
    step: int = 0
    vocabulary: Vocabulary | None = None
    opt_state: Mapping[str, LazyArray] | None = None
    family: str | None = None
    kept: Kept | None = None
    lengths: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a checkpoint that has not been read yet.

    Args:
        dtype: its name, such as "float32" or "bfloat16".
        read: returns some of its rows, or all of it for `...`.
        reads_rows: whether rows can be read alone; otherwise `read` always reads the whole array.
    """

    shape: ArrayShape
    dtype: str
    read: Callable[[Rows], np.ndarray]
    reads_rows: bool = True

    def chunks(self) -> Iterator[Rows]:
        """Yields the rows in chunks of about `CHUNK_READ_BYTES`."""
        if not self.shape or not self.reads_rows:
            yield ...
            return
        row = 4 * math.prod(self.shape[1:])
        step = max(1, CHUNK_READ_BYTES // max(1, row))
        for start in range(0, self.shape[0], step):
            yield slice(start, min(start + step, self.shape[0]))


def equal_stored(one: StoredArray, other: StoredArray) -> bool:
    """Returns whether two stored arrays hold the same numbers."""
    return one.shape == other.shape and all(
        np.array_equal(one.read(rows), other.read(rows)) for rows in one.chunks()
    )


def row_block(stored: StoredArray, index: int, count: int) -> StoredArray:
    """Returns one of `count` equal blocks of the rows of an array."""
    if count == 1:
        return stored
    rows = stored.shape[0] // count

    def read(wanted: Rows) -> np.ndarray:
        first = 0
        last = rows
        if isinstance(wanted, slice):
            first, last, _ = wanted.indices(rows)
        block = slice(index * rows + first, index * rows + last)
        return stored.read(block) if stored.reads_rows else stored.read(...)[block]

    return dataclasses.replace(stored, shape=(rows, *stored.shape[1:]), read=read)


def matrix_shape(name: str, shape: ArrayShape) -> ArrayShape:
    """Returns the shape of one layer's parameter with heads and head width joined.

    >>> matrix_shape("decoder/layers/self_attention/query/kernel", (16, 2, 6))
    (16, 12)
    >>> matrix_shape("decoder/layers/self_attention/out/kernel", (2, 6, 16))
    (12, 16)
    >>> matrix_shape("decoder/layers/self_attention/query/bias", (2, 6))
    (12,)
    """
    if name.endswith("/bias"):
        return (math.prod(shape),)
    if len(shape) != 3:
        return shape
    split = 2 if name.endswith("out/kernel") else 1
    return math.prod(shape[:split]), math.prod(shape[split:])


def is_stacked(name: str) -> bool:
    """Returns whether the first dimension of a parameter is the layers."""
    return "/layers/" in name


def gathered(
    shape: ArrayShape, parts: Sequence[StoredArray], as_stored: View, *, per_layer: bool
) -> LazyArray:
    """Returns an array made of `parts`: one for each layer, or a single one.

    Args:
        as_stored: maps the slice that receives a part to a view with the part's shape.
    """

    def load() -> np.ndarray:
        whole = aligned(shape)
        for target, part in zip(whole if per_layer else [whole], parts, strict=True):
            view = as_stored(target)
            assert np.shares_memory(view, whole) or not view.size, "as_stored returned a copy"
            for rows in part.chunks():
                view[rows] = part.read(rows)
        return whole

    return LazyArray(shape, np.dtype(np.float32), load)


def aligned(shape: ArrayShape) -> np.ndarray:
    """Returns an uninitialised float32 array that JAX on CPUs uses without a copy."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(shape)


def check_names(owner: str, wanted: Collection[str], found: Collection[str]) -> None:
    """Raises a UserError if an array is missing or belongs to no parameter of the model."""
    for names, verb, why in (
        (sorted(set(wanted) - set(found)), "does not hold", "which its model needs"),
        (sorted(set(found) - set(wanted)), "holds", "which its model does not have"),
    ):
        if names:
            first = shown(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            raise UserError(
                f"{owner} {verb} {first}, {why}; check that the download is complete and "
                "that its configuration belongs to it"
            )


def check_array(owner: str, name: str, wanted: ArrayShape, stored: StoredArray | LazyArray) -> None:
    """Raises a UserError if an array has another shape, both printed, or another kind of dtype."""
    if stored.shape != wanted:
        raise UserError(
            f"{owner}: {name} must have shape {wanted} by the model's sizes, got {stored.shape}; "
            "download the checkpoint and its configuration from the same source"
        )
    if str(stored.dtype) not in FLOATS:
        raise UserError(
            f"{owner}: {name} must be of {', '.join(FLOATS)}, got {stored.dtype}; save the "
            "checkpoint again without quantisation"
        )

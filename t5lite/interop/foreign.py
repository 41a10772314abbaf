"""What is read from a foreign checkpoint, and how its arrays become ours."""

import dataclasses
import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.data.text.vocabularies import Vocabulary
from t5lite.models.architectures import Model

Shape = tuple[int, ...]
FLOATS = ("float32", "bfloat16", "float16", "float64")
Rows = slice | types.EllipsisType
View = Callable[[np.ndarray], np.ndarray]
# Of an array, read at once.
PIECE_BYTES = 1 << 26
ALIGNMENT = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foreign:
    """A checkpoint, of whatever program.

    Args:
        model: what its parameters belong to.
        params: by their t5lite names.
        step: steps it was trained for.
        vocabulary: None where the checkpoint brings none.
        opt_state: Adafactor's, by t5lite names; None where it is not wanted.
        remarks: what a user should know of what was read.
    """

    model: Model
    params: Mapping[str, LazyArray]
    step: int = 0
    vocabulary: Vocabulary | None = None
    opt_state: Mapping[str, LazyArray] | None = None
    remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array in a checkpoint, not read yet.

    Args:
        dtype: its name, such as "float32" or "bfloat16".
        read: returns these of its rows, or with ... all of it.
        has_pieces: whether rows are read alone; else all of it is, whatever is asked for.
    """

    shape: Shape
    dtype: str
    read: Callable[[Rows], np.ndarray]
    has_pieces: bool = True

    def pieces(self) -> Iterator[Rows]:
        """Returns the rows piece by piece, each of about `PIECE_BYTES`."""
        if not self.shape or not self.has_pieces:
            yield ...
            return
        row = 4 * math.prod(self.shape[1:])
        step = max(1, PIECE_BYTES // max(1, row))
        for start in range(0, self.shape[0], step):
            yield slice(start, min(start + step, self.shape[0]))


def matrix_shape(name: str, shape: Shape) -> Shape:
    """Returns the shape of one layer's parameter with heads and their width joined.

    >>> matrix_shape("decoder/layers/self_attention/query/kernel", (16, 2, 6))
    (16, 12)
    >>> matrix_shape("decoder/layers/self_attention/out/kernel", (2, 6, 16))
    (12, 16)
    """
    if len(shape) != 3:
        return shape
    split = 2 if name.endswith("out/kernel") else 1
    return math.prod(shape[:split]), math.prod(shape[split:])


def is_stacked(name: str) -> bool:
    """Returns whether a parameter's first dimension is the layers."""
    return "/layers/" in name


def gathered(
    shape: Shape, parts: Sequence[Stored], as_stored: View, *, per_layer: bool
) -> LazyArray:
    """Returns an array made of `parts`: of one for each of its layers, or of a single one.

    Args:
        as_stored: from what is to hold a part, to a view of it that is shaped as the part is.
    """

    def load() -> np.ndarray:
        whole = aligned(shape)
        for target, part in zip(whole if per_layer else [whole], parts, strict=True):
            view = as_stored(target)
            assert np.shares_memory(view, whole) or not view.size, "a copy is filled, not a view"
            for rows in part.pieces():
                view[rows] = part.read(rows)
        return whole

    return LazyArray(shape, np.dtype(np.float32), load)


def aligned(shape: Shape) -> np.ndarray:
    """Returns an empty float32 array that JAX on CPUs takes over without a copy."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(shape)


def check_names(owner: str, wanted: Collection[str], found: Collection[str]) -> None:
    """Raises a UserError where an array is missing, or one is there that nothing asks for."""
    for names, verb, why in (
        (sorted(set(wanted) - set(found)), "lacks", "which its model must have"),
        (sorted(set(found) - set(wanted)), "holds", "which its model has not"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{owner} {verb} {names[0]}{more}, {why}; is it whole, and of the T5 family?"
            )


def check_array(owner: str, name: str, wanted: Shape, stored: Stored | LazyArray) -> None:
    """Raises a UserError where an array has another shape, both printed, or is not of floats."""
    if stored.shape != wanted:
        raise UserError(
            f"{owner}: {name} must have shape {wanted} by the model's sizes, got {stored.shape}; "
            "fetch the checkpoint and its configuration from one place"
        )
    if str(stored.dtype) not in FLOATS:
        raise UserError(
            f"{owner}: {name} must be of {', '.join(FLOATS)}, got {stored.dtype}; save the "
            "checkpoint again without quantisation"
        )

"""What is read from a foreign checkpoint, and how its arrays become ours."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.data.vocabularies import Vocabulary
from t5lite.models.architectures import Model

Shape = tuple[int, ...]
Convert = Callable[[np.ndarray], np.ndarray]


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
    """An array in a checkpoint, not read yet."""

    shape: Shape
    read: Callable[[], np.ndarray]


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
    shape: Shape, parts: Sequence[Stored], convert: Convert, *, per_layer: bool
) -> LazyArray:
    """Returns an array made of `parts`: of one for each of its layers, or of a single one."""

    def load() -> np.ndarray:
        if not per_layer:
            return np.ascontiguousarray(convert(parts[0].read()), np.float32).reshape(shape)
        whole = np.empty(shape, np.float32)
        for layer, part in enumerate(parts):
            whole[layer] = convert(part.read()).reshape(shape[1:])
        return whole

    assert not per_layer or len(parts) == shape[0], (shape, len(parts))
    return LazyArray(shape, np.dtype(np.float32), load)


def check_names(owner: str, wanted: Collection[str], found: Collection[str]) -> None:
    """Raises a UserError where an array is missing, or one is there that nothing asks for."""
    for names, verb, why in (
        (sorted(set(wanted) - set(found)), "lacks", "which its model must have"),
        (sorted(set(found) - set(wanted)), "holds", "which its model has not"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{owner} {verb} {names[0]}{more}, {why}")


def check_shape(owner: str, name: str, wanted: Shape, stored: Stored) -> None:
    """Raises a UserError with both shapes where they differ."""
    if stored.shape != wanted:
        raise UserError(
            f"{owner}: {name} must have shape {wanted} by the model's sizes, got {stored.shape}"
        )

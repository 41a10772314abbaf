"""Rejects parameters that are NaN or infinite while they are read."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.interop.foreign import Rows, StoredArray


def finite_stored(arrays: Mapping[str, StoredArray], owner: str) -> dict[str, StoredArray]:
    """Returns the arrays; reading one raises a UserError if a number in it is not finite."""

    def checked(name: str, stored: StoredArray) -> StoredArray:
        def read(rows: Rows) -> np.ndarray:
            array = stored.read(rows)
            first = rows.start if isinstance(rows, slice) else 0
            _check_finite(array, owner, name, first)
            return array

        return dataclasses.replace(stored, read=read)

    return {name: checked(name, stored) for name, stored in arrays.items()}


def finite_lazy(arrays: Mapping[str, LazyArray], owner: str) -> dict[str, LazyArray]:
    """Returns the arrays; loading one raises a UserError if a number in it is not finite."""

    def checked(name: str, lazy: LazyArray) -> LazyArray:
        def load() -> np.ndarray:
            array = lazy.load()
            _check_finite(array, owner, name, 0)
            return array

        return dataclasses.replace(lazy, load=load)

    return {name: checked(name, lazy) for name, lazy in arrays.items()}


def _check_finite(array: np.ndarray, owner: str, name: str, first_row: int) -> None:
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(np.asarray(array, np.float32))
    if is_finite.all():
        return
    index = tuple(int(axis[0]) for axis in np.nonzero(~is_finite))
    value = float(np.asarray(array)[index])
    if index:
        index = (index[0] + first_row, *index[1:])
    raise UserError(
        f"{owner}: {name} must be finite, got {value} at index {list(index)}; take an earlier "
        "checkpoint, or bind convert.allow_nonfinite = True to convert it as it is"
    )

"""Configuration whose numbers are inputs of the compiled step, not constants in it.

A class decorated with `numeric` is a frozen keyword-only dataclass and a JAX pytree: its numbers
are leaves, so jit sees their values as arguments, and runs that differ only in them share one
program. Fields declared with `static()` are constants of the program; changing one recompiles.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

from t5lite.core.errors import UserError

# A float or an int as the user writes it, a traced scalar inside jit, and in a vectorized sweep an
# array with one number per trial.
Number = Any

_T = TypeVar("_T")


def static(**kwargs: Any) -> Any:
    """Declares a dataclass field that is a constant of the program, not an input."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(static,))
def numeric(cls: type[_T]) -> type[_T]:
    """Makes `cls` a frozen keyword-only dataclass and a pytree whose leaves are its numbers."""
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    names: dict[bool, list[str]] = {True: [], False: []}
    for field in dataclasses.fields(made):  # type: ignore[arg-type]  # made is a dataclass
        names[bool(field.metadata.get("static"))].append(field.name)
    return jax.tree_util.register_dataclass(made, names[False], names[True])


def check_number(owner: str, value: Number, rule: str, holds: Callable[[float], bool]) -> None:
    """Checks a number as the user wrote it; None and traced values pass.

    Args:
        owner: the name of the number in errors.
        rule: completes "OWNER must be ...".

    Raises:
        UserError: if the value is not a finite number, or `holds(value)` is false.
    """
    if isinstance(value, str | bool | list | tuple | dict):
        raise UserError(f"{owner} must be a number, got {value!r}")
    if isinstance(value, int | float) and not (_is_finite(value) and holds(value)):
        raise UserError(f"{owner} must be {rule}, got {value}")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    # An integer larger than the largest float.
    except OverflowError:
        return False


def as_inputs(tree: _T) -> _T:
    """Returns `tree` as inputs of the compiled step: Python numbers become float32 arrays.

    NumPy values keep their dtype.
    """
    return jax.tree.map(
        lambda x: np.asarray(x, np.float32 if isinstance(x, int | float) else None), tree
    )

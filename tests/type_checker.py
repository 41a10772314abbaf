"""Checks shapes and types of arrays at run time, in the functions whose signatures have arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import jaxtyping

_check = jaxtyping.jaxtyped


def check_arrays_of(packages: Sequence[str]) -> None:
    """Checks functions of these packages, which must not be imported yet."""
    jaxtyping.install_import_hook(packages, "beartype.beartype")
    # What the hook applies to each function and each class.
    vars(jaxtyping)["jaxtyped"] = _checked_if_it_has_arrays


def _checked_if_it_has_arrays(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a decorator; functions without arrays, and those within others, stay as they are.

    Each call of the outer function would build the checks of the inner one again. Checking all
    functions takes a sixth of the time of tests that trace models.
    """

    def decorate(target: Any) -> Any:
        is_within = "<locals>" in getattr(target, "__qualname__", "")
        if is_within or not _has_arrays(target):
            return target
        return _check(target, typechecker=typechecker)

    return decorate


def _has_arrays(target: Any) -> bool:
    function = getattr(target, "__func__", getattr(target, "fget", target))
    return "jaxtyping" in repr(getattr(function, "__annotations__", {}))

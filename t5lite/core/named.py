"""Functions that gin files name: one of a table, or a user's own as "module:function"."""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from t5lite.core.errors import UserError, suggestion

F = TypeVar("F", bound=Callable[..., Any])


def named(owner: str, name: str, table: Mapping[str, F]) -> F:
    """Returns `table[name]`, or imports a "module:function".

    Raises:
        UserError: if there is no such function.
    """
    if not isinstance(name, str):
        raise UserError(f"{owner} must be names, got {name!r}")
    if ":" in name:
        return import_function(owner, name)
    if name not in table:
        raise UserError(
            f"{owner} has no {name!r}; {suggestion(name, table)}, "
            'or name your own function as "module:function"'
        )
    return table[name]


def import_function(owner: str, name: str) -> Any:
    """Imports the class or function that "module:name" names.

    Raises:
        UserError: if it cannot be imported or called.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError, SyntaxError) as error:
        raise UserError(f"{owner}: {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"{owner}: {name!r} must be a function, got {type(found).__name__}")
    return found


def versioned(owner: str, name: str, table: Mapping[str, F]) -> str:
    """Returns a name that changes with the source of the function."""
    try:
        source = inspect.getsource(named(owner, name, table))
    except (OSError, TypeError):
        # A built-in function, which changes only with Python.
        return name
    return f"{name}#{hashlib.sha256(source.encode()).hexdigest()[:8]}"

"""Functions that gin files name: one of a table, or a user's own as "module:function"."""

import hashlib
import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from t5lite.core.errors import UserError, cut, shown, suggestion

F = TypeVar("F", bound=Callable[..., Any])


def named(owner: str, name: str, table: Mapping[str, F]) -> F:
    """Returns `table[name]`, or imports a "module:function".

    Raises:
        UserError: if there is no such function.
    """
    if not isinstance(name, str):
        raise UserError(f"{owner} must be names, got {cut(repr(name))}")
    if ":" in name:
        return import_function(owner, name)
    if name not in table:
        raise UserError(
            f"{owner} has no {cut(repr(name))}; {suggestion(name, table)}, "
            'or name your own function as "module:function"'
        )
    return table[name]


def import_function(owner: str, name: str) -> Any:
    """Imports the class or function that "module:name" names.

    Raises:
        UserError: if it cannot be imported or called; of an error in the user's own module, with
            its file and line.
    """
    module, _, function = name.partition(":")
    shown_name = cut(repr(name))
    if not (function.isidentifier() and all(map(str.isidentifier, module.split(".")))):
        raise UserError(
            f"{owner}: {shown_name} cannot be imported: it must be as in 'my.module:function'"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{owner}: {shown_name} cannot be imported: {shown(str(error))}") from error
    # A user's module may raise anything, or end with sys.exit() as a script does.
    except (Exception, SystemExit) as error:
        raise UserError(f"{owner}: {shown_name} cannot be imported: {_located(error)}") from error
    if not callable(found):
        raise UserError(f"{owner}: {shown_name} must be a function, got {type(found).__name__}")
    return found


def _located(error: BaseException) -> str:
    """Returns the type and text of an error, and where it was raised."""
    file = getattr(error, "filename", None)
    line = getattr(error, "lineno", None)
    if line is None and (frames := traceback.extract_tb(error.__traceback__)):
        file = frames[-1].filename
        line = frames[-1].lineno
    return f"{type(error).__name__}: {shown(str(error))} ({file}:{line})"


def versioned(owner: str, name: str, table: Mapping[str, F]) -> str:
    """Returns a name that changes with the source of the function."""
    try:
        source = inspect.getsource(named(owner, name, table))
    except (OSError, TypeError):
        # A built-in function, which changes only with Python.
        return name
    return f"{name}#{hashlib.sha256(source.encode()).hexdigest()[:8]}"

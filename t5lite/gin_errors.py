"""gin's errors as UserErrors: one line, with the file and line where gin names them."""

import contextlib
import inspect
import logging
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from t5lite.core.errors import UserError, cut, shown, suggestion
from t5lite.gin_text import decode_own_names
from t5lite.public_names import REJECTED_NAMES

# What gin raises for text that it cannot parse.
_PARSE_ERRORS = (
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    ValueError,
    RuntimeError,
    OSError,
    ImportError,
)
_QUOTE = "to bind a string that begins with {0}, quote it: \"'{0}...'\""


@contextlib.contextmanager
def parse_errors(targets: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Turns every error of parsing into a UserError.

    Args:
        targets: what can be bound, by name.

    Raises:
        UserError: in place of every error that gin raises for a mistake in files or flags.
    """
    # gin logs every directory in which it did not find a file.
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.ERROR))
    try:
        yield
    except UserError as error:
        raise _without_gin(error) from error.__cause__
    except _PARSE_ERRORS as error:
        text = decode_own_names(str(error))
        known = _known_error(error, text, targets)
        message = known or f"gin cannot parse what is bound: {_first_line(text)}{_location(text)}"
        raise UserError(message) from error
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def build_errors(targets: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Turns errors about names that only show while objects are built into UserErrors.

    Args:
        targets: what can be bound, by name.

    Raises:
        UserError: in place of gin's errors about unknown or recursive names.
    """
    try:
        yield
    except UserError as error:
        raise _without_gin(error) from error.__cause__
    except (ValueError, RecursionError) as error:
        message = _known_error(error, decode_own_names(str(error)), targets)
        if message is None:
            raise
        raise UserError(message) from error


def _known_error(
    error: Exception, text: str, targets: Mapping[str, Callable[..., Any]]
) -> str | None:
    """Returns the message for an error that gin raises for a mistake, else None."""
    if isinstance(error, RecursionError):
        return "a gin file includes itself, a macro refers to itself, or values are nested too deep"
    if isinstance(error, OSError) and "Unable to open file" in text:
        path = re.search(r"open file: (.*?)\. Searched", text)
        name = cut(repr(path.group(1) if path else text))
        return (
            f"gin file {name} not found; searched the current directory, --gin_search_paths and "
            "the files that come with t5lite"
        )
    if isinstance(error, ImportError):
        return f"a gin file imports a module that cannot be imported: {_first_line(text)}"
    if match := re.match(r"No configurable matching (?:reference )?'(@?)(.*?)(?:\(\))?'", text):
        is_reference, name = match.groups()
        if name in REJECTED_NAMES:
            return f"{name} cannot train in t5lite: {REJECTED_NAMES[name]}{_location(text)}"
        hint = f"; {_QUOTE.format('@')}" if is_reference and not _location(text) else ""
        return (
            f"{cut(repr(name))} is not a name that gin can bind; {suggestion(name, targets)}"
            f"{hint}{_location(text)}"
        )
    if match := re.match(r"Configurable '(.*?)' doesn't have a parameter named '(.*?)'", text):
        owner, parameter = match.groups()
        if owner in targets:
            known = suggestion(parameter, inspect.signature(targets[owner]).parameters)
            return f"{owner} has no parameter {parameter!r}; {known}{_location(text)}"
    if match := re.match(r"No bindings specified for '(?:(.*?)/)?gin.macro'", text):
        name = match.group(1)
        if name is None:
            return "@gin.macro() is not a value; the value of a macro is %NAME"
        return f"macro {name} is used and not defined; add {name} = VALUE, or {_QUOTE.format('%')}"
    if isinstance(error, SyntaxError | tokenize.TokenError):
        file = getattr(error, "filename", None)
        line = getattr(error, "lineno", None)
        where = f" ({file}:{line})" if file and line else ""
        return f"gin cannot parse what is bound: {_first_line(str(error.args[0]))}{where}"
    return None


def _without_gin(error: UserError) -> UserError:
    """Returns an error without the lines that gin appends to it in a subclass of its class."""
    kind = next(each for each in type(error).__mro__ if "__getattr__" not in vars(each))
    plain: UserError = kind((str(error).splitlines() or [""])[0])
    return plain


def _first_line(text: str) -> str:
    return shown((text.splitlines() or [""])[0])


def _location(text: str) -> str:
    """Returns the file and line that gin appends to an error."""
    match = re.search(r'In file "(.*?)", line (\d+)', text)
    return f" ({match.group(1)}:{match.group(2)})" if match else ""

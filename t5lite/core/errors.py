"""The errors that users see, and suggestions for misspelt names."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

_T = TypeVar("_T")


class UserError(Exception):
    """A mistake that the user can correct, printed on one line without a traceback.

    The message names the owner, the rule, what it got and the remedy.
    """


class Unavailable(UserError):
    """Something is missing that may become available: disk space, a lock, another process."""


class Diverged(UserError):
    """Training failed on valid inputs: the loss or the gradient is not finite."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean 'x'?" for the nearest known name, or the list of all of them.

    >>> suggestion("gellu", ["relu", "gelu"])
    "did you mean 'gelu'?"
    >>> suggestion("zzz", ["relu", "gelu"])
    'known: gelu, relu'
    """
    names = sorted(known)
    lowered = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f"did you mean {lowered[near[0]]!r}?"
    return "known: " + (", ".join(names) or "none")


def choose(owner: str, name: str, table: Mapping[str, _T]) -> _T:
    """Returns `table[name]`.

    Raises:
        UserError: for an unknown name, with a suggestion.
    """
    check_choice(owner, name, table)
    return table[name]


def check_choice(owner: str, name: Any, known: Collection[str]) -> None:
    """Raises a UserError with a suggestion if `name` is not one of `known`."""
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{owner} is unknown: got {name!r}; {suggestion(str(name), known)}")

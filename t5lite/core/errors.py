"""The errors that users see, and suggestions for misspelt names."""

import contextlib
import difflib
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

_T = TypeVar("_T")

# Longer values are cut in errors.
SHOWN_CHARACTERS = 200

# A wrong path is a user's mistake; a full disk or a failing network is not.
WRONG_PATH = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


class UserError(Exception):
    r"""A mistake that the user can correct, printed on one line without a traceback.

    The message names the owner, the rule, what it got and the remedy. Line ends, which names from
    foreign files may contain, are escaped.

    >>> print(UserError("no split 'test'; known: tr\u2028ain"))
    no split 'test'; known: tr\u2028ain
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text.splitlines()) < 2:
            return text
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Unavailable(UserError):
    """Something is missing that may become available: disk space, a lock, another process."""


class Diverged(UserError):
    """Training failed on valid inputs: the loss or the gradient is not finite."""


@contextlib.contextmanager
def errors_named(path: pathlib.Path) -> Iterator[None]:
    """Adds the path to errors of an open file, which do not name it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def cut(text: str) -> str:
    """Returns a text without the end of a long one."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def shown(text: str) -> str:
    r"""Returns a text as an error shows it: on one line, and without the end of a long one.

    >>> shown("[1, 2]"), shown("[1,\n2]")
    ('[1, 2]', "'[1,\\n2]'")
    """
    return cut(text if text.isprintable() else repr(text))


def reason_of(error: BaseException) -> str:
    r"""Returns the first line of the message of an error, or its kind if it has none.

    >>> reason_of(ValueError("a\nb")), reason_of(MemoryError())
    ('a', 'MemoryError')
    """
    return shown((str(error).splitlines() or [type(error).__name__])[0])


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
        raise UserError(
            f"{owner} is unknown: got {cut(repr(name))}; {suggestion(str(name), known)}"
        )

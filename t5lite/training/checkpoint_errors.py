"""Errors of reading and writing checkpoints, each of them one line."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax

from t5lite.core.errors import Unavailable, UserError
from t5lite.parallel.processes import everywhere, texts_of_all

_T = TypeVar("_T")

# What Orbax and TensorStore raise for damaged files of earlier versions, which have no checksums.
_OF_DAMAGE = (ValueError, OSError, LookupError, TypeError, AttributeError, ArithmeticError)


class Damaged(UserError):
    """A checkpoint that cannot be read: damaged, or being deleted.

    Args:
        path: the directory of the checkpoint.
        reason: what is wrong with it.
        remedy: what to do about it.
    """

    def __init__(self, path: str, reason: str, remedy: str = "use another checkpoint") -> None:
        super().__init__(f"checkpoint {path} is damaged: {reason}; {remedy}")
        self.path = path
        self.reason = reason


@contextmanager
def damage_errors(path: str) -> Iterator[None]:
    """Turns errors of reading into one line that names the checkpoint."""
    try:
        yield
    except _OF_DAMAGE as error:
        raise Damaged(path, first_line(error)) from error


def read_together(path: str, read: Callable[[], _T]) -> _T:
    """Returns what `read` does, and raises `Damaged` in all processes if it fails in one.

    The others would wait for that process. All of them must call it. Unless all fail, the error
    names the first that does.

    Args:
        path: the directory of the checkpoint that is read.
    """
    results: list[_T] = []
    error = None
    try:
        results.append(read())
    except Damaged as damage:
        error = damage
    if not everywhere(error is None):
        own = f"process {jax.process_index()} on {socket.gethostname()} cannot read it"
        problems = texts_of_all("" if error is None else f"{own}: {error.reason}")
        if error is not None and all(problems):
            raise error
        raise Damaged(path, next(filter(None, problems))) from error
    return results[0]


@contextmanager
def write_errors(directory: str) -> Iterator[None]:
    """Turns errors of writing into one line; TensorStore raises ValueErrors."""
    try:
        yield
    except (ValueError, OSError) as error:
        full = "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error)
        reason = "the disk is full" if full else first_line(error)
        raise Unavailable(
            f"a checkpoint could not be written in {directory}: {reason}; earlier ones "
            "are complete; free some space and restart to resume from the latest"
        ) from error


def first_line(error: BaseException) -> str:
    """Returns the first line of the message of an error, at most 200 characters, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

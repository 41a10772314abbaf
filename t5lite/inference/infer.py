"""Results for the objects of a file, in order, in a file that survives being killed.

Results are written to OUTPUT.partial, beside a description of the work they belong to; the file
gets its name when it is complete. With `--output=-` they go to the standard output.
"""

import contextlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.core.errors import UserError
from t5lite.core.files import write_atomically
from t5lite.core.locks import try_lock
from t5lite.core.records import Schema, read_document
from t5lite.inference.requests import Request

STANDARD_OUTPUT = "-"


@runtime_checkable
class ResultWriter(Protocol):
    """Where results go. `done` is the number of results that an earlier attempt wrote."""

    done: int

    def write(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Appends results."""

    def finish(self) -> None:
        """Completes the output."""

    def close(self) -> None:
        """Releases the output."""


def as_json_line(result: Mapping[str, Any]) -> str:
    """Returns a result as a line of JSON, which has no NaN and no infinity."""
    return json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n"


def check_free(output: str) -> None:
    """Raises a UserError if results cannot be written to a file of that name."""
    path = pathlib.Path(output)
    if output == STANDARD_OUTPUT:
        return
    if path.exists():
        raise UserError(f"--output={path} exists; name another file, or remove it")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--output={path} must be in an existing directory")


class ResultStream:
    """The standard output: nothing to resume."""

    done = 0

    def write(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Prints results, in the first process."""
        if jax.process_index() == 0:
            sys.stdout.writelines(map(as_json_line, results))
            sys.stdout.flush()

    def finish(self) -> None:
        """Does nothing: what is printed is complete."""

    def close(self) -> None:
        """Does nothing: the process owns its standard output."""


class ResultFile:
    """A file of results, resumed where an earlier attempt stopped.

    Args:
        path: of the complete file; it must not exist.
        identity: describes the work. A partial file of other work is left alone.

    Raises:
        UserError: if the complete file, or a partial file of other work, exists.
    """

    def __init__(self, path: pathlib.Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._is_first = jax.process_index() == 0
        self._lock: IO[str] | None = None
        self._partial = path.with_name(f"{path.name}.partial")
        self._identity = path.with_name(f"{path.name}.partial.json")
        # Only the first process reads and writes: others may start later, or see another disk.
        done = -1
        wrong: UserError | OSError | None = None
        if self._is_first:
            try:
                done = self._open(json.loads(json.dumps(identity)))
            except (UserError, OSError) as error:
                wrong = error
                self.close()
        self.done = int(multihost_utils.broadcast_one_to_all(np.int32(done)))
        if wrong is not None:
            raise wrong
        if self.done < 0:
            raise UserError("the first process cannot write results; see its error")

    def _open(self, identity: Mapping[str, Any]) -> int:
        """Locks the partial file, drops an incomplete line, and returns the number of results."""
        # Held as long as this process lives.
        self._lock = self._partial.open("a")
        if not try_lock(self._lock):
            raise UserError(f"{self._partial} is being written by another process")
        # Only now: another process may just have finished the file.
        if self._path.exists():
            with contextlib.suppress(FileNotFoundError):
                if not self._partial.stat().st_size:
                    self._partial.unlink()
        check_free(str(self._path))
        if self._partial.stat().st_size:
            found = self._found_identity()
            for name in {**found, **identity}:
                if found.get(name) != identity.get(name):
                    raise UserError(
                        f"{self._partial} was started with {name} {found.get(name)}, got "
                        f"{identity.get(name)}; resume with the former, or name another --output"
                    )
        write_atomically(self._identity, json.dumps(identity))
        with self._partial.open("rb+") as file:
            lines = 0
            end = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break
                lines += 1
                end += len(line)
            file.truncate(end)
        return lines

    def _found_identity(self) -> dict[str, Any]:
        """Returns the description of the work that the partial file belongs to."""
        try:
            return read_document(self._identity, Schema(), "remove it")
        except (OSError, UserError) as error:
            raise UserError(
                f"{self._partial} exists without a readable {self._identity.name}, which describes "
                "its work; remove it"
            ) from error

    def write(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Appends results; they are on the disk when it returns."""
        if not self._is_first:
            return
        with self._partial.open("a", encoding="utf-8") as file:
            file.writelines(map(as_json_line, results))
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Renames the partial file to its final name.

        Raises:
            UserError: if a file of that name appeared meanwhile; the partial file stays then.
        """
        if self._is_first:
            if self._path.exists():
                raise UserError(
                    f"{self._path} appeared while {self._partial} was written, which is complete: "
                    "move one of them"
                )
            self._partial.replace(self._path)
            self._identity.unlink()

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.close()


def infer(
    requests: Iterator[Request],
    output: ResultWriter,
    answer: Callable[[Sequence[Request], int, Callable[[int], None]], list[dict[str, Any]]],
    *,
    chunk_size: int,
    on_done: Callable[[int], None],
) -> None:
    """Writes every request with the fields that `answer` adds, in order.

    Chunks start at the same requests in every attempt, so a killed and resumed run gives the same
    results as an undisturbed one.

    Args:
        answer: from requests, the number of the first request, and a function to call with the
            number of requests done, to the fields to add to each.
        on_done: called with the number of requests done.
    """
    with contextlib.closing(output):
        # A chunk that was only partly written is computed again as a whole.
        for number, chunk in enumerate(_chunks(requests, chunk_size)):
            first = number * chunk_size
            if first + len(chunk) <= output.done:
                continue
            answers = answer(chunk, first, _counted_from(first, on_done))
            results = [{**r.given, **added} for r, added in zip(chunk, answers, strict=True)]
            output.write(results[max(output.done - first, 0) :])
        output.finish()


def _counted_from(first: int, on_done: Callable[[int], None]) -> Callable[[int], None]:
    """Returns `on_done` for counts within a chunk that starts at request `first`."""
    return lambda count: on_done(first + count)


def _chunks(requests: Iterator[Request], size: int) -> Iterator[list[Request]]:
    while chunk := list(itertools.islice(requests, size)):
        yield chunk

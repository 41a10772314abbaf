"""Results for the objects of a file, in their order, in a file that no kill can spoil.

What is done stands in OUTPUT.partial, beside what it is done of; only the whole gets the name that
was asked for.
"""

import contextlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.core.errors import UserError
from t5lite.core.files import write_atomically
from t5lite.core.locks import try_lock
from t5lite.inference.requests import Request


def check_free(path: pathlib.Path) -> None:
    """Raises a UserError where results cannot go to `path`."""
    if path.exists():
        raise UserError(f"--output={path} is there already; name another, or remove it")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--output={path} must be in a folder that is there")


class Output:
    """The file of results, gone on with where an earlier attempt stopped.

    Args:
        path: of the whole; it must not be there.
        identity: of the work. What is there of another is not touched.

    Raises:
        UserError: where the whole, or a part of other work, is there already.
    """

    def __init__(self, path: pathlib.Path, identity: Mapping[str, Any]) -> None:
        self._path, self._is_first = path, jax.process_index() == 0
        self._lock: IO[str] | None = None
        self._partial = path.with_name(f"{path.name}.partial")
        self._identity = path.with_name(f"{path.name}.partial.json")
        # The first process alone looks and writes: others may come later, or see other disks.
        done, wrong = -1, None
        if self._is_first:
            try:
                done = self._begin(json.loads(json.dumps(identity)))
            except (UserError, OSError) as error:
                wrong = error
                self.close()
        # How many results are there.
        self.done = int(multihost_utils.broadcast_one_to_all(np.int32(done)))
        if wrong is not None:
            raise wrong
        if self.done < 0:
            raise UserError("the first process cannot write results; see what it says")

    def _begin(self, mine: Mapping[str, Any]) -> int:
        """Drops a line that was cut off, and returns how many there are."""
        # Held as long as this process lives.
        self._lock = self._partial.open("a")
        if not try_lock(self._lock):
            raise UserError(f"{self._partial} is being written by another process")
        # Only now: another process may just have finished it.
        if self._path.exists():
            with contextlib.suppress(FileNotFoundError):
                if not self._partial.stat().st_size:
                    self._partial.unlink()
        check_free(self._path)
        if self._partial.stat().st_size:
            theirs = self._theirs()
            for name in {**theirs, **mine}:
                if theirs.get(name) != mine.get(name):
                    raise UserError(
                        f"{self._partial} was begun with {name} {theirs.get(name)}, got "
                        f"{mine.get(name)}; go on with the former, or name another --output"
                    )
        write_atomically(self._identity, json.dumps(mine))
        with self._partial.open("rb+") as file:
            lines, end = 0, 0
            for line in file:
                if not line.endswith(b"\n"):
                    break
                lines, end = lines + 1, end + len(line)
            file.truncate(end)
        return lines

    def _theirs(self) -> dict[str, Any]:
        """Returns what the results that are there were begun with."""
        try:
            return dict(json.loads(self._identity.read_text()))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._partial} is there, but not what it was begun with; remove it"
            ) from error

    def write(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Appends results; when it returns they are on the disk."""
        if not self._is_first:
            return
        with self._partial.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in results)
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Gives the whole its name.

        Raises:
            UserError: where something else has it by now; the whole keeps the partial one then.
        """
        if self._is_first:
            if self._path.exists():
                raise UserError(
                    f"{self._path} came to be while {self._partial} was made, which is whole: "
                    "move one of them"
                )
            self._partial.replace(self._path)
            self._identity.unlink()

    def close(self) -> None:
        """Leaves the file to others."""
        if self._lock is not None:
            self._lock.close()


def infer(
    requests: Iterator[Request],
    output: Output,
    answer: Callable[[Sequence[Request], int, Callable[[int], None]], list[dict[str, Any]]],
    *,
    chunk_size: int,
    on_done: Callable[[int], None],
) -> None:
    """Writes for every request what was given with what `answer` adds, in order.

    Chunks begin at the same requests whenever it is started, so that an attempt that was killed
    gives what an undisturbed one would have.

    Args:
        answer: from requests, the number of the first of them, and what is called with how many of
            them are answered, to what is added to each.
        on_done: called with the number of requests that are answered.
    """
    with contextlib.closing(output):
        # A chunk of which only a part was written is worked on as a whole once more.
        for number, chunk in enumerate(_chunks(requests, chunk_size)):
            first, behind = number * chunk_size, number * chunk_size + len(chunk)
            if behind <= output.done:
                continue
            answers = answer(chunk, first, _behind(first, on_done))
            results = [{**r.given, **added} for r, added in zip(chunk, answers, strict=True)]
            output.write(results[max(output.done - first, 0) :])
        output.finish()


def _behind(first: int, on_done: Callable[[int], None]) -> Callable[[int], None]:
    """Returns what is told how many requests from the `first` on are answered."""
    return lambda count: on_done(first + count)


def _chunks(requests: Iterator[Request], size: int) -> Iterator[list[Request]]:
    while chunk := list(itertools.islice(requests, size)):
        yield chunk

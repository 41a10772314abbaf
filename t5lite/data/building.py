"""Data sets in shards: written in parallel, whole or not at all, and taken up where they stopped.

A folder of shards is built under another name beside its own and renamed when the last shard is
there. A shard that is finished has a note beside it with its counts; who builds again makes the
missing ones only. A second process that wants the same folder waits for the first.
"""

import concurrent.futures.process
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.files import write_whole

log = logging.getLogger(__name__)

# So many of the first bad rows are told of.
SHOWN_ERRORS = 3

# Of the whole folder, which is complete where it is there.
SUMMARY = "summary.json"

# Beside every finished shard, behind its name.
_NOTE = ".note"

# Shards done, shards in all, records so far.
OnProgress = Callable[[int, int, int], None]


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How a data set is built, which changes nothing in it.

    Args:
        workers: processes; None for one a processor.
        on_progress: called after every shard; None for a log line now and then.
    """

    workers: int | None = None
    on_progress: OnProgress | None = None


DEFAULT_OPTIONS = BuildOptions()


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a shard, or a whole folder of them, was made of.

    Args:
        records: written.
        bytes: of these records.
        empty: rows without text, which were left out.
        bad: rows that could not be read, which were left out.
        errors: the first of those, each with its file and line.
        digest: of all the records.
        file_bytes: what the files take.
    """

    records: int = 0
    bytes: int = 0
    empty: int = 0
    bad: int = 0
    errors: tuple[str, ...] = ()
    digest: str = ""
    file_bytes: int = 0


class ShardWriter:
    """Writes one shard and counts; `finish` leaves the shard and its note in place."""

    def __init__(self, path: pathlib.Path, *, max_errors: int, compressed: bool) -> None:
        from array_record.python import array_record_module

        self._path, self._unfinished = path, path.with_name(f"{path.name}.{os.getpid()}.tmp")
        # One record a group: each is read alone.
        options = "group_size:1" if compressed else "group_size:1,uncompressed"
        self._writer = array_record_module.ArrayRecordWriter(str(self._unfinished), options)
        self._digest, self._max_errors = hashlib.sha256(), max_errors
        self._records = self._bytes = self._empty = self._bad = 0
        self._errors: list[str] = []

    def write(self, record: bytes, *, identity: bytes | None = None) -> None:
        """Adds one record.

        Args:
            identity: the same for the same record, where its bytes may come out differently.

        Raises:
            UserError: where the disk is full.
        """
        with self._write_errors():
            self._writer.write(record)
        identity = record if identity is None else identity
        self._digest.update(len(identity).to_bytes(8, "little"))
        self._digest.update(identity)
        self._records += 1
        self._bytes += len(record)

    def leave_out_empty(self) -> None:
        """Counts a row without text."""
        self._empty += 1

    def leave_out_bad(self, error: str) -> None:
        """Counts a row that cannot be read.

        Raises:
            UserError: where there are more of them than are allowed.
        """
        self._bad += 1
        self._errors = [*self._errors, error][:SHOWN_ERRORS]
        check_bad(Summary(bad=self._bad, errors=tuple(self._errors)), self._max_errors)

    def finish(self) -> Summary:
        """Closes the shard; from now on it is not written again."""
        with self._write_errors():
            self._writer.close()
        summary = Summary(
            records=self._records,
            bytes=self._bytes,
            empty=self._empty,
            bad=self._bad,
            errors=tuple(self._errors),
            digest=self._digest.hexdigest(),
            file_bytes=self._unfinished.stat().st_size,
        )
        self._unfinished.replace(self._path)
        write_whole(_note(self._path), json.dumps(dataclasses.asdict(summary)))
        return summary

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        # array_record's only error.
        except RuntimeError as error:
            reason = "the disk is full" if "No space left" in str(error) else error
            raise UserError(
                f"{self._path.parent} cannot be written: {reason}; the parts that are done are "
                "kept: start again to go on"
            ) from error


# Writes the records of one part into the shard.
WritePart = Callable[[Any, ShardWriter], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the shards of a folder are made.

    Args:
        name: what the data is called in messages.
        write_part: a function of a module, so that other processes find it.
        finish: writes what else belongs into the folder, given the shards' summaries.
        max_errors: rows that may be left out because they cannot be read.
        compressed: makes shards smaller, and reading one record of them slower.
    """

    name: str
    write_part: WritePart
    finish: Callable[[pathlib.Path, Mapping[str, Summary]], None] | None = None
    max_errors: int = 0
    compressed: bool = True


def build_shards(
    folder: pathlib.Path,
    parts: Mapping[str, Any],
    recipe: Recipe,
    options: BuildOptions = DEFAULT_OPTIONS,
) -> Summary:
    """Builds `folder` with one shard for each part, if it is not there, and returns its summary.

    Args:
        parts: what goes into each shard, by the name of its file.

    Raises:
        UserError: where more rows cannot be read than may be, or the disk is full.
    """
    if not (folder / SUMMARY).exists():
        # A process that runs its parent's script anew would wait here for its parent, for ever.
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise UserError(
                "a script that builds data must do so below `if __name__ == '__main__':`"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder), _errors(folder):
            if not (folder / SUMMARY).exists():
                log.info("building %s in %s", recipe.name, folder)
                unfinished = folder.with_name(f"{folder.name}.unfinished")
                unfinished.mkdir(exist_ok=True)
                summaries = _write_all(unfinished, parts, recipe, options)
                if recipe.finish is not None:
                    recipe.finish(unfinished, summaries)
                whole = add(summaries.values())
                write_whole(unfinished / SUMMARY, json.dumps(dataclasses.asdict(whole)))
                unfinished.replace(folder)
                log.info("built %s: %s", recipe.name, describe(whole))
    return _read_summary(folder / SUMMARY)


def summaries_of(folder: pathlib.Path) -> dict[str, Summary]:
    """Returns the shards of a folder that `build_shards` made, by the names of their files.

    Raises:
        UserError: where a shard is not there, or not as long as it was written.
    """
    summaries = {}
    for note in sorted(folder.glob(f"*{_NOTE}")):
        shard, summary = note.with_name(note.name.removesuffix(_NOTE)), _read_summary(note)
        if not shard.exists() or shard.stat().st_size != summary.file_bytes:
            raise UserError(f"{shard} is damaged; delete {folder} to have it built anew")
        summaries[shard.name] = summary
    return summaries


def describe(summary: Summary) -> str:
    """Returns a summary as a person reads it."""
    text = f"{summary.records:,} records, {summary.bytes:,} bytes"
    if summary.empty:
        text += f"; left out {summary.empty:,} empty rows"
    if summary.bad:
        text += f"; left out {summary.bad:,} rows that cannot be read: {'; '.join(summary.errors)}"
    return text


def _write_all(
    folder: pathlib.Path, parts: Mapping[str, Any], recipe: Recipe, options: BuildOptions
) -> dict[str, Summary]:
    for left_behind in folder.glob("*.tmp"):
        left_behind.unlink(missing_ok=True)
    done = summaries_of(folder)
    missing = [shard for shard in parts if shard not in done]
    on_progress = options.on_progress or _Logged(recipe.name)

    def account(shard: str, summary: Summary) -> None:
        done[shard] = summary
        on_progress(len(done), len(parts), sum(s.records for s in done.values()))
        check_bad(add(done.values()), recipe.max_errors)

    # Shards of an earlier attempt, which may have allowed more.
    for shard, summary in list(done.items()):
        account(shard, summary)
    count = min(options.workers or os.cpu_count() or 1, len(missing))
    if count < 2:
        for shard in missing:
            account(shard, _write_shard(recipe, parts[shard], folder / shard))
    else:
        # Not forked: JAX's threads may hold locks.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            count, mp_context=context, initializer=_end_with, initargs=(os.getpid(),)
        ) as pool:
            futures = {
                pool.submit(_write_shard, recipe, parts[shard], folder / shard): shard
                for shard in missing
            }
            try:
                for future in concurrent.futures.as_completed(futures):
                    account(futures[future], future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return {shard: done[shard] for shard in parts}


def _write_shard(recipe: Recipe, part: Any, path: pathlib.Path) -> Summary:
    writer = ShardWriter(path, max_errors=recipe.max_errors, compressed=recipe.compressed)
    recipe.write_part(part, writer)
    return writer.finish()


def _end_with(parent: int) -> None:
    """Ends this process when its parent is killed, so that who builds again is alone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_bad(summary: Summary, max_errors: int) -> Summary:
    """Returns `summary`.

    Raises:
        UserError: where more rows could not be read than are allowed.
    """
    if summary.bad > max_errors:
        raise UserError(
            f"more rows cannot be read than FileSource.max_errors ({max_errors:,}) allows: "
            f"{'; '.join(summary.errors)}; mend them or raise it"
        )
    return summary


def add(summaries: Iterable[Summary]) -> Summary:
    """Returns one summary of several shards."""
    summaries = list(summaries)
    digest = hashlib.sha256("".join(s.digest for s in summaries).encode())
    errors = [error for s in summaries for error in s.errors]
    return Summary(
        records=sum(s.records for s in summaries),
        bytes=sum(s.bytes for s in summaries),
        empty=sum(s.empty for s in summaries),
        bad=sum(s.bad for s in summaries),
        errors=tuple(errors[:SHOWN_ERRORS]),
        digest=digest.hexdigest(),
        file_bytes=sum(s.file_bytes for s in summaries),
    )


def _note(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}{_NOTE}")


def _read_summary(path: pathlib.Path) -> Summary:
    fields = json.loads(path.read_text())
    return Summary(**{**fields, "errors": tuple(fields["errors"])})


class _Logged:
    """Says every ten seconds how far it is."""

    def __init__(self, name: str) -> None:
        self._name, self._said = name, time.monotonic()

    def __call__(self, done: int, count: int, records: int) -> None:
        if time.monotonic() - self._said > 10.0:
            self._said = time.monotonic()
            log.info("building %s: %d of %d parts, %s records", self._name, done, count, records)


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other process builds the same."""
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which builds %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _errors(folder: pathlib.Path) -> Iterator[None]:
    """Says on one line why a folder cannot be built."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot be built: {error}; the parts that are done are kept"
        ) from error
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            f"a process that built {folder} ended before its time, for want of memory perhaps; the "
            "parts that are done are kept: start again to go on"
        ) from error

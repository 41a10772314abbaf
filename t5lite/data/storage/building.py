"""Data sets in shards: written in parallel, whole or not at all, and taken up where they stopped.

A folder of shards is built under another name beside its own and renamed when the last shard is
there. A shard that is finished has a note beside it with its counts; who builds again makes the
missing ones only. A second process that wants the same folder waits for the first.
"""

import concurrent.futures.process
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.files import write_atomically
from t5lite.core.locks import try_lock, wait_for_lock
from t5lite.data.storage.shards import (
    ShardWriter,
    Summary,
    add,
    check_bad,
    describe,
    read_summary,
    summaries_of,
)

log = logging.getLogger(__name__)

# Of the whole folder, which is complete where it is there.
SUMMARY = "summary.json"

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
    parts: Callable[[], Mapping[str, Any]],
    recipe: Recipe,
    options: BuildOptions = DEFAULT_OPTIONS,
) -> Summary:
    """Builds `folder` with one shard for each part, if it is not there, and returns its summary.

    Args:
        parts: gives what goes into each shard, by the name of its file; asked only if it is built.

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
        with lock(folder), _errors(folder):
            if not (folder / SUMMARY).exists():
                log.info("building %s in %s", recipe.name, folder)
                unfinished = folder.with_name(f"{folder.name}.unfinished")
                unfinished.mkdir(exist_ok=True)
                summaries = _write_all(unfinished, parts(), recipe, options)
                if recipe.finish is not None:
                    recipe.finish(unfinished, summaries)
                whole = add(summaries.values())
                write_atomically(unfinished / SUMMARY, json.dumps(dataclasses.asdict(whole)))
                # Workers of a killed build may have begun a shard since this one started.
                _remove_left_behind(unfinished)
                unfinished.replace(folder)
                log.info("built %s: %s", recipe.name, describe(whole))
    return read_summary(folder / SUMMARY)


def _remove_left_behind(folder: pathlib.Path) -> None:
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)


def _write_all(
    folder: pathlib.Path, parts: Mapping[str, Any], recipe: Recipe, options: BuildOptions
) -> dict[str, Summary]:
    _remove_left_behind(folder)
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


class _Logged:
    """Says every ten seconds how far it is."""

    def __init__(self, name: str) -> None:
        self._name, self._said = name, time.monotonic()

    def __call__(self, done: int, count: int, records: int) -> None:
        if time.monotonic() - self._said > 10.0:
            self._said = time.monotonic()
            log.info("building %s: %d of %d parts, %s records", self._name, done, count, records)


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other process builds the same folder, whose parent is there."""
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        if not try_lock(file):
            log.info("waiting for another process, which builds %s", folder)
            wait_for_lock(file)
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

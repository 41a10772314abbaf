"""Building data sets of shards: in parallel, atomically and resumably.

A folder of shards is built under another name and renamed after the last shard. A finished shard
has a note with its counts beside it, and a later build makes only the missing shards. A second
process that needs the same folder waits for the first one.
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
from t5lite.core.import_path import safe_children
from t5lite.core.locks import is_file_of, try_lock, wait_for_lock
from t5lite.data.storage.shards import (
    SUMMARY,
    ShardWriter,
    Summary,
    add,
    check_bad,
    read_summary,
    summaries_of,
    summary_text,
)

log = logging.getLogger(__name__)

# Called with the finished shards, all shards, and the records so far.
OnShard = Callable[[int, int, int], None]


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Options of a build that do not change its result.

    Args:
        workers: number of processes; None for one per processor.
        on_shard: called after every shard; None for a log line every ten seconds.
    """

    workers: int | None = None
    on_shard: OnShard | None = None


DEFAULT_OPTIONS = BuildOptions()


# Writes the records of a part to a shard.
WritePart = Callable[[Any, ShardWriter], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to build the shards of a folder.

    Args:
        name: of the data, for messages.
        write_part: a function at the top level of a module, so that other processes can import it.
        finish: writes further files into the folder, given the summaries of the shards.
        max_errors: rows that may be left out because they cannot be read.
        compressed: whether shards are compressed: smaller, but slower to read.
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
    """Builds `folder` with one shard per part, unless it exists, and returns its summary.

    Args:
        parts: returns the content of each shard by file name; called only to build.

    Raises:
        UserError: if too many rows cannot be read, or the disk is full.
    """
    if not (folder / SUMMARY).exists():
        # A process that runs the script of its parent again would wait here for its parent.
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise UserError(
                "a script that builds data must do so under `if __name__ == '__main__':`"
            )
        with _errors(folder), build_lock(folder):
            if not (folder / SUMMARY).exists():
                log.info("building %s in %s", recipe.name, folder)
                unfinished = folder.with_name(f"{folder.name}.unfinished")
                unfinished.mkdir(exist_ok=True)
                summaries = _write_all(unfinished, parts(), recipe, options)
                if recipe.finish is not None:
                    recipe.finish(unfinished, summaries)
                whole = add(summaries.values())
                write_atomically(unfinished / SUMMARY, json.dumps(dataclasses.asdict(whole)))
                # Workers of a killed build may have started a shard meanwhile.
                _remove_partial_shards(unfinished)
                unfinished.replace(folder)
                log.info("built %s: %s", recipe.name, summary_text(whole))
    return read_summary(folder / SUMMARY)


def _remove_partial_shards(folder: pathlib.Path) -> None:
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)


def _write_all(
    folder: pathlib.Path, parts: Mapping[str, Any], recipe: Recipe, options: BuildOptions
) -> dict[str, Summary]:
    _remove_partial_shards(folder)
    done = summaries_of(folder)
    missing = [shard for shard in parts if shard not in done]
    on_shard = options.on_shard or _ShardLog(recipe.name)

    def account(shard: str, summary: Summary) -> None:
        done[shard] = summary
        on_shard(len(done), len(parts), sum(s.records for s in done.values()))
        check_bad(add(done.values()), recipe.max_errors)

    # An earlier attempt may have allowed more bad rows.
    for shard, summary in list(done.items()):
        account(shard, summary)
    count = min(options.workers or os.cpu_count() or 1, len(missing))
    if count < 2:
        for shard in missing:
            account(shard, _write_shard(recipe, parts[shard], folder / shard))
    else:
        # Spawned, not forked: threads of JAX may hold locks.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            count, mp_context=context, initializer=_end_with, initargs=(os.getpid(),)
        ) as pool:
            # The first call starts the processes.
            with safe_children():
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
    """Ends this process when its parent is killed, so that it does not disturb a later build."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _ShardLog:
    """Logs the progress of a build every ten seconds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logged = time.monotonic()

    def __call__(self, done: int, count: int, records: int) -> None:
        if time.monotonic() - self._logged > 10.0:
            self._logged = time.monotonic()
            log.info("building %s: %d of %d parts, %s records", self._name, done, count, records)


@contextlib.contextmanager
def build_lock(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other process builds or removes the folder; creates its parent."""
    path = lock_file(folder)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            if not try_lock(file):
                log.info("waiting for another process that builds %s", folder)
                wait_for_lock(file)
            # What removes the folder removes its lock file, too: others lock a new one.
            if is_file_of(path, file):
                yield
                return


def lock_file(folder: pathlib.Path) -> pathlib.Path:
    """Returns the lock file of a folder, beside it."""
    return folder.with_name(f"{folder.name}.lock")


@contextlib.contextmanager
def _errors(folder: pathlib.Path) -> Iterator[None]:
    """Turns the errors of building a folder into a UserError on one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be built: {error}; finished shards are kept") from error
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            f"a process that built {folder} was killed, perhaps for lack of memory; finished "
            "shards are kept: run the command again to resume"
        ) from error

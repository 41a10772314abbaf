"""The data sets that `FileSource` has built in a folder: listing and removing them."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from t5lite.core.locks import is_file_of, lock_holder, try_lock
from t5lite.core.records import read_document
from t5lite.data.sources.files import stamp
from t5lite.data.sources.split_builds import BUILD_VERSION, SOURCE, SOURCE_SCHEMA, VERSION
from t5lite.data.storage.building import lock_file
from t5lite.data.storage.shards import SUMMARY, read_summary

CURRENT = "current"
CHANGED = "files changed"
MISSING = "files missing"
EARLIER = "earlier version"
UNFINISHED = "unfinished"
BUILDING = "building"
UNREACHABLE = "files unreachable"

# A run cannot use these data sets any more.
PRUNABLE = (CHANGED, MISSING, EARLIER, UNFINISHED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltDataSet:
    """A data set of one split, built from files.

    Args:
        path: its folder.
        state: one of the constants above; only runs whose files are "current" use it.
        split: of the source; empty if unknown.
        files: the files that it was built from.
        records: number of records.
        file_bytes: its size on disk.
    """

    path: str
    state: str
    split: str = ""
    files: tuple[str, ...] = ()
    records: int = 0
    file_bytes: int = 0


def built_data_sets(data_dir: pathlib.Path) -> Iterator[BuiltDataSet]:
    """Yields the data sets of `FileSource` below a folder of data sets, by name."""
    for folder in sorted((data_dir / "files").glob("*")):
        if folder.is_dir():
            yield _data_set(folder)


def prune(data_set: BuiltDataSet) -> bool:
    """Removes a data set from the disk, unless it is no longer prunable, and returns whether."""
    folder = pathlib.Path(data_set.path)
    path = lock_file(folder / VERSION)
    try:
        file = path.open("a")
    except FileNotFoundError:
        # Another process has removed it.
        return False
    with file:
        # Another process may have begun to build it, or finished.
        if not (try_lock(file) and is_file_of(path, file)):
            return False
        if _unlocked_data_set(folder).state not in PRUNABLE:
            return False
        shutil.rmtree(folder)
    return True


def _data_set(folder: pathlib.Path) -> BuiltDataSet:
    if lock_holder(lock_file(folder / VERSION)) is not None:
        return BuiltDataSet(path=str(folder), state=BUILDING, file_bytes=_size(folder))
    return _unlocked_data_set(folder)


def _unlocked_data_set(folder: pathlib.Path) -> BuiltDataSet:
    found = BuiltDataSet(path=str(folder), state=UNFINISHED, file_bytes=_size(folder))
    version = folder / VERSION
    try:
        records = read_summary(version / SUMMARY).records
    except FileNotFoundError:
        return found
    found = dataclasses.replace(found, records=records, state=EARLIER)
    try:
        source = read_document(version / SOURCE, SOURCE_SCHEMA, f"delete {folder}")
    except FileNotFoundError:
        return found
    if source["version"] != BUILD_VERSION:
        return found
    return dataclasses.replace(
        found,
        state=_state(source["files"]),
        split=source["split"],
        files=tuple(path for path, *_ in source["files"]),
    )


def _state(stamps: list[list[Any]]) -> str:
    for path, *rest in stamps:
        try:
            if list(stamp(path)) != [path, *rest]:
                return CHANGED
        except FileNotFoundError:
            return MISSING
        # fsspec's file systems raise their own errors.
        except Exception:
            return UNREACHABLE
    return CURRENT


def _size(folder: pathlib.Path) -> int:
    """Returns the bytes of the files in a folder, which another process may be writing."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(os.path.join(parent, name)).st_size
    return size

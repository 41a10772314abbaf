"""The data sets that `FileSource` has built in a folder: listing and removing them."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from t5lite.core.locks import try_lock
from t5lite.data.sources.files import stamp
from t5lite.data.sources.split_builds import BUILD_VERSION, SOURCE
from t5lite.data.storage.building import SUMMARY
from t5lite.data.storage.shards import read_summary

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


def prune(data_set: BuiltDataSet) -> None:
    """Removes a data set from the disk."""
    assert data_set.state in PRUNABLE, data_set
    shutil.rmtree(data_set.path)


def _data_set(folder: pathlib.Path) -> BuiltDataSet:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found = BuiltDataSet(path=str(folder), state=UNFINISHED, file_bytes=size)
    if _is_locked(folder / "1.0.0.lock"):
        return dataclasses.replace(found, state=BUILDING)
    version = folder / "1.0.0"
    if not (version / SUMMARY).is_file():
        return found
    records = read_summary(version / SUMMARY).records
    found = dataclasses.replace(found, records=records, state=EARLIER)
    try:
        source: dict[str, Any] = json.loads((version / SOURCE).read_text())
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


def _is_locked(path: pathlib.Path) -> bool:
    if not path.is_file():
        return False
    with path.open("r+") as file:
        return not try_lock(file)

"""The directories of a run's checkpoints: which are complete, and where the others are moved."""

import logging
import pathlib
import re

import jax

from t5lite.core.records import Schema, decode_record, integer
from t5lite.training.checksums_item import checksums_file

FOLDER = "checkpoints"
# Beside it: directories that are named like a checkpoint but are none, and damaged checkpoints.
INCOMPLETE = "incomplete_checkpoints"
DAMAGED = "damaged_checkpoints"
# Orbax's times of writing, which it needs of every checkpoint in a directory.
STEP_METADATA = "_CHECKPOINT_METADATA"
_TIMES = Schema(required={"init_timestamp_nsecs": integer(1), "commit_timestamp_nsecs": integer(1)})

_STEP = re.compile(r"0|[1-9][0-9]{0,17}")

log = logging.getLogger(__name__)


def is_complete(path: pathlib.Path) -> bool:
    """Whether a directory has the name and the parts of a checkpoint.

    A directory with checksums was complete once: if something of it is missing, it is damaged.
    """
    parts = (path / "state" / "_METADATA", path / "about" / "metadata")
    return _STEP.fullmatch(path.name) is not None and (
        checksums_file(path).exists() or all(part.exists() for part in parts)
    )


def move_incomplete_aside(directory: pathlib.Path) -> None:
    """Renames each `STEP` without the parts of a checkpoint out of the way, and logs it.

    Otherwise Orbax would count it among the checkpoints to keep, and could not write that step.
    """
    if not directory.is_dir() or jax.process_index() != 0:
        return
    for path in sorted(directory.iterdir()):
        if path.name.isdecimal() and not is_complete(path):
            target = move_aside(path, INCOMPLETE)
            log.warning("%s is not a complete checkpoint; moved to %s", path, target)


def move_aside(path: pathlib.Path, name: str) -> pathlib.Path:
    """Moves a directory of checkpoints into the folder `name` beside them; returns its new path."""
    aside = path.parent.with_name(name)
    aside.mkdir(exist_ok=True)
    target = aside / path.name
    while target.exists():
        target = target.with_name(f"{target.name}.again")
    path.rename(target)
    return target


def drop_bad_times(directory: pathlib.Path) -> None:
    """Renames each of Orbax's files of times that is damaged, and logs it.

    Otherwise Orbax could not open the directory. The times are not needed.
    """
    if not directory.is_dir() or jax.process_index() != 0:
        return
    for path in sorted(directory.glob(f"*/{STEP_METADATA}")):
        try:
            decode_record(path.read_bytes(), _TIMES)
        except ValueError:
            target = path.rename(path.with_name(f"{STEP_METADATA}.damaged"))
            log.warning("%s is damaged and not needed; moved to %s", path, target)

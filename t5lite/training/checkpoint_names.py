"""The names by which users choose checkpoints: MODEL_DIR, MODEL_DIR:best, a directory, "all"."""

import pathlib
import re

from t5lite.core.errors import UserError
from t5lite.training.checkpoint_folders import FOLDER, is_complete
from t5lite.training.stored_checkpoints import StoredCheckpoints

LATEST = "latest"
BEST = "best"
ALL = "all"
# What names one checkpoint of a run, as in MODEL_DIR:best.
_ONE_OF_A_RUN = re.compile(rf"{LATEST}|{BEST}|\d+")


def named_steps(checkpoints: StoredCheckpoints, which: str) -> list[int]:
    """Returns the steps that "latest", "best", "all", or steps with commas name.

    Raises:
        UserError: if there is no such checkpoint.
    """
    found = checkpoints.steps()
    if not found:
        raise UserError(
            f"{checkpoints.directory} has no checkpoint; train it first, or name another run"
        )
    if which == LATEST:
        return found[-1:]
    if which == ALL:
        return found
    if which == BEST:
        if (best := checkpoints.best()) is None:
            raise UserError(
                f"{checkpoints.directory} has no ranked checkpoint; train with "
                "train.keep_highest or train.keep_lowest"
            )
        return [best]
    for name in which.split(","):
        if int(name) not in found:
            have = ", ".join(map(str, found))
            raise UserError(
                f"{checkpoints.directory} has no checkpoint {name!r}; it has {have}, and takes "
                "latest, best and all"
            )
    return [int(name) for name in which.split(",")]


def find_checkpoint(path: pathlib.Path) -> str | None:
    """Returns the directory of a checkpoint: `path`, the latest of a MODEL_DIR, or MODEL_DIR:best.

    Raises:
        UserError: if `path` is MODEL_DIR:best or MODEL_DIR:STEP and the run has no such checkpoint.
    """
    base, _, which = str(path).rpartition(":")
    folder = pathlib.Path(base) / FOLDER
    if _ONE_OF_A_RUN.fullmatch(which) and base and folder.is_dir() and not path.exists():
        checkpoints = StoredCheckpoints(folder)
        return checkpoints.path(*named_steps(checkpoints, which))
    if (path / FOLDER).is_dir():
        steps = [p for p in (path / FOLDER).iterdir() if is_complete(p)]
        return str(max(steps, key=lambda p: int(p.name))) if steps else None
    return str(path) if is_complete(path) else None


def base_checkpoint(flag: str, folder: str | None) -> str | None:
    """Returns the directory of the base that a flag names: see `find_checkpoint`.

    Raises:
        UserError: if it is no checkpoint.
    """
    if folder is None:
        return None
    path = pathlib.Path(folder).expanduser().absolute()
    if (found := find_checkpoint(path)) is None:
        raise UserError(f"{flag}={folder} {_what_it_is(path)}")
    return found


def _what_it_is(path: pathlib.Path) -> str:
    """Returns why a path is not a checkpoint, and what to do about it."""
    formats = {
        "a Hugging Face folder": (path / "config.json").is_file(),
        "a T5X checkpoint": path.suffix == ".msgpack"
        or any((path / name).is_file() for name in ("checkpoint", "state/_METADATA")),
    }
    for name, is_it in formats.items():
        if is_it:
            return f"is {name}; run t5lite convert --input={path} --output=DIR, and name DIR"
    if (path / "adapter_config.json").is_file():
        return (
            f"is an adapter of PEFT; run t5lite convert --input={path} --base=BASE --output=DIR, "
            "and name DIR"
        )
    if path.name == FOLDER and find_checkpoint(path.parent):
        return f"is the {FOLDER} folder of a run; name {path.parent} for the latest, or one of them"
    if path.is_file():
        return "is a file; name a MODEL_DIR or a directory such as MODEL_DIR/checkpoints/1000"
    if path.is_dir():
        return (
            "holds no checkpoint; name a MODEL_DIR or a directory like MODEL_DIR/checkpoints/1000"
        )
    return "not found; name a MODEL_DIR or a directory such as MODEL_DIR/checkpoints/1000"


def open_checkpoint(folder: str, base: str | None = None) -> tuple[StoredCheckpoints, int]:
    """Returns the checkpoints among which one is, and its step: see `find_checkpoint`.

    Args:
        base: the directory of its base; None for the one that it records.

    Raises:
        UserError: if there is none; it says what the directory holds instead.
    """
    path = pathlib.Path(folder).expanduser()
    if not (path.name.isdecimal() and path.is_dir()):
        found = find_checkpoint(path)
        if found is None:
            raise UserError(f"checkpoint {folder!r} {_what_it_is(path)}")
        path = pathlib.Path(found)
    checkpoints = StoredCheckpoints(path.parent, base)
    if int(path.name) not in checkpoints.steps():
        raise UserError(f"checkpoint {folder!r} is not complete: it cannot be restored")
    return checkpoints, int(path.name)

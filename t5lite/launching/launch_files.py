"""`launch.json`: what a launch's folder records, and the study beside it."""

import dataclasses
import json
import pathlib
from typing import Any

from t5lite.core.errors import UserError, suggestion
from t5lite.core.files import write_atomically
from t5lite.launching.launch import TRIALS_FOLDER, Launch

SPEC = "launch.json"
LAUNCH_LOCK = "launch.lock"
# Fields that change no result: they may differ when a launch is continued.
CHANGEABLE = ("engine", "parallel", "vectorized", "max_failures", "resources")


def save_launch(launch: Launch) -> None:
    """Writes `launch.json`, unless the folder belongs to something else.

    Raises:
        UserError: if it does, naming the field that differs.
    """
    folder = pathlib.Path(launch.folder)
    mine = _document(launch)
    if (folder / SPEC).exists():
        theirs = _document(read_launch(folder))
        for name, value in mine.items():
            if name not in CHANGEABLE and theirs[name] != value:
                raise UserError(
                    f"{folder} belongs to another launch: its {name} is {theirs[name]!r}, got "
                    f"{value!r}; use another --name, or `t5lite launch resume {launch.reference}`"
                )
    else:
        check_launch_folder(folder)
    (folder / TRIALS_FOLDER).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SPEC, json.dumps(mine, indent=1) + "\n")


def check_launch_folder(folder: pathlib.Path) -> None:
    """Raises a UserError if a folder exists and is neither empty nor a launch."""
    # A launch that was killed as it started leaves no more than these.
    partial = (LAUNCH_LOCK, SPEC, TRIALS_FOLDER)
    if folder.exists() and not (folder / SPEC).exists():
        others = [path.name for path in folder.iterdir() if not path.name.startswith(partial)]
        trials = folder / TRIALS_FOLDER
        if others or (trials.exists() and any(trials.iterdir())):
            raise UserError(f"{folder} exists and is not a launch; use another --name")


def read_launch(folder: pathlib.Path) -> Launch:
    """Returns the launch of a folder, which an earlier release may have written.

    Raises:
        UserError: if there is none, or `launch.json` is damaged.
    """
    path = folder / SPEC
    try:
        document = json.loads(path.read_text())
        # Earlier releases repeated settings; their trials keep their numbers.
        document.setdefault("allow_repeats", True)
        return Launch(**document, folder=str(folder.absolute()))
    except (FileNotFoundError, NotADirectoryError) as error:
        siblings = sorted(found.parent.name for found in folder.parent.glob(f"*/{SPEC}"))
        hint = suggestion(folder.name, siblings) if siblings else "it holds no launch"
        raise UserError(f"no launch {folder.name!r} found in {folder.parent}; {hint}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: {error}; restore it, or remove {folder} and launch again"
        ) from error


def _document(launch: Launch) -> dict[str, Any]:
    """Returns the recorded fields: not the folder, which may be moved."""
    document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(launch)))
    del document["folder"]
    return document

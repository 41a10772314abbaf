"""`launch.json`: what a launch's folder records, and the study beside it."""

import dataclasses
import json
import pathlib
from typing import Any

from t5lite.core.errors import UserError, suggestion
from t5lite.core.files import write_atomically
from t5lite.core.records import (
    NUMBER,
    OBJECT,
    TEXT,
    TRUTH,
    Kind,
    Schema,
    integer,
    list_of,
    object_of,
    or_null,
    read_document,
)
from t5lite.launching.launch import TRIALS_FOLDER, Launch

SPEC = "launch.json"
LAUNCH_LOCK = "launch.lock"
_SETTING = Kind(
    "an object of numbers, texts, true, false and null",
    lambda value: (
        isinstance(value, dict)
        and all(
            each is None or isinstance(each, str | bool) or NUMBER.holds(each)
            for each in value.values()
        )
    ),
)
# The fields of `Launch` but for the folder, which may be moved.
LAUNCH_SCHEMA = Schema(
    required={"command": TEXT, "flags": list_of(TEXT), "engine": TEXT, "working_dir": TEXT},
    optional={
        "parallel": or_null(integer(1)),
        "vectorized": or_null(integer(1)),
        "max_failures": integer(0),
        "resources": OBJECT,
        "space": object_of(TEXT),
        "listed": list_of(_SETTING),
        "method": TEXT,
        "trials": or_null(integer(1)),
        "prune": or_null(TEXT),
        "objective": TEXT,
        "maximize": TRUTH,
        "seed": integer(0),
        "allow_repeats": TRUTH,
        "first_score": or_null(integer(0)),
        "last_step": or_null(integer(0)),
        "config": or_null(TEXT),
    },
    others=None,
)
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
    remedy = f"restore it, or remove {folder} and launch again"
    try:
        document = read_document(folder / SPEC, LAUNCH_SCHEMA, remedy)
    except (FileNotFoundError, NotADirectoryError) as error:
        siblings = sorted(found.parent.name for found in folder.parent.glob(f"*/{SPEC}"))
        hint = suggestion(folder.name, siblings) if siblings else "it holds no launch"
        raise UserError(f"no launch {folder.name!r} found in {folder.parent}; {hint}") from error
    # Earlier releases repeated settings; their trials keep their numbers.
    return Launch(**{"allow_repeats": True, **document}, folder=str(folder.absolute()))


def _document(launch: Launch) -> dict[str, Any]:
    """Returns the recorded fields."""
    document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(launch)))
    del document["folder"]
    return document

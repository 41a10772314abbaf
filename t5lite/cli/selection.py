"""The checkpoints that a command works on: `--checkpoint`, `--average`, `--parameters`.

`--checkpoint` has one form for every command: a run's MODEL_DIR, one of its checkpoints, or a
Hugging Face folder; or, if the command has a run file, which checkpoints of that run.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from t5lite.cli.foreign_checkpoint import converted, is_foreign
from t5lite.cli.paths import user_path
from t5lite.core.errors import UserError
from t5lite.data.text import vocabularies
from t5lite.data.text.vocabulary import Vocabulary
from t5lite.models import description
from t5lite.models.model import Model
from t5lite.training.checkpoint_errors import Damaged
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.checkpoint_names import (
    ALL,
    BEST,
    LATEST,
    base_checkpoint,
    find_checkpoint,
    named_steps,
    open_checkpoint,
)
from t5lite.training.stored_checkpoints import StoredCheckpoints

_WHICH = re.compile(rf"{LATEST}|{BEST}|{ALL}|\d+(,\d+)*")
CHECKPOINT_FORMS = (
    "a MODEL_DIR for its latest, MODEL_DIR:best, MODEL_DIR:all or MODEL_DIR:1000,2000, a "
    "MODEL_DIR/checkpoints/STEP, or a Hugging Face folder"
)


@dataclasses.dataclass(frozen=True)
class CheckpointName:
    """What `--checkpoint` names.

    Args:
        folder: a MODEL_DIR, a checkpoint or a Hugging Face folder; None for the run file's own.
        which: "latest", "best", "all", or steps with commas.
    """

    folder: pathlib.Path | None
    which: str


def checkpoint_name(text: str) -> CheckpointName:
    """Parses `--checkpoint`. A directory called `best` is `./best`."""
    if _WHICH.fullmatch(text):
        return CheckpointName(None, text)
    folder = user_path("--checkpoint", text)
    base, colon, which = text.rpartition(":")
    if colon and base and _WHICH.fullmatch(which) and not folder.exists():
        return CheckpointName(user_path("--checkpoint", base), which)
    return CheckpointName(folder, LATEST)


@dataclasses.dataclass(frozen=True)
class ChosenCheckpoint:
    """One checkpoint, or the mean of several that end with it.

    Args:
        steps: those whose parameters are averaged; the last one is its own.
        which: of its parameters; see `StoredCheckpoints.param_paths`.
    """

    checkpoints: StoredCheckpoints
    steps: tuple[int, ...]
    which: str | None = None

    @property
    def step(self) -> int:
        """Its own step."""
        return self.steps[-1]

    @property
    def path(self) -> str:
        """Its directory."""
        return self.checkpoints.path(self.step)

    @property
    def saved_at(self) -> int:
        """When it was saved, in nanoseconds."""
        return self.checkpoints.saved_at(self.step)

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What was saved with it."""
        return self.checkpoints.about(self.step)

    def count_files(self) -> int:
        """Returns the number of files of all its steps, which falls while they are deleted."""
        return sum(
            len(names) for step in self.steps for *_, names in os.walk(self.checkpoints.path(step))
        )

    def check_same(self, model: Model, vocabulary: Vocabulary) -> None:
        """Raises a UserError if it was trained as another model or with another vocabulary."""
        description.check_same(self.about, model, f"checkpoint {self.path}")
        self.check_vocabulary(vocabulary)

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raises a UserError if it was trained with another vocabulary."""
        fingerprint = self.about.get("vocabulary_fingerprint")
        vocabularies.check_same_vocabulary(fingerprint, vocabulary, f"checkpoint {self.path}")

    def params(self, shapes: Any) -> Any:
        """Returns the parameters, sharded like the abstract `shapes`."""
        return self.checkpoints.restore_average(self.steps, shapes, self.which)


def chosen_checkpoints(
    model_dir: str | None,
    text: str,
    average: int,
    which: str | None = None,
    base: str | None = None,
) -> list[ChosenCheckpoint]:
    """Returns the checkpoints that `--checkpoint` names.

    Args:
        model_dir: of the run file; None without one.
        text: see `checkpoint_name`.
        average: number of checkpoints, ending with each chosen one, whose parameters are averaged.
        which: of the parameters; see `StoredCheckpoints.param_paths`.
        base: what `--base` names; None for the base that each checkpoint records.

    Raises:
        UserError: if there is no such checkpoint.
    """
    base = base_checkpoint("--base", base)
    name = checkpoint_name(text)
    folder = name.folder
    if folder is None:
        if model_dir is None:
            raise UserError(
                f"--checkpoint={text} needs the --gin_file of a run, or {CHECKPOINT_FORMS}"
            )
        folder = pathlib.Path(model_dir)
    elif is_foreign(folder):
        folder = converted(folder)
    if name.folder is not None and name.which == LATEST:
        checkpoints, step = open_checkpoint(found_checkpoint(folder, text), base)
        return [_averaged(checkpoints, step, average, which)]
    checkpoints = open_run(str(folder), base)
    steps = named_steps(checkpoints, name.which)
    if name.which == ALL:
        # The first checkpoints have too few before them to average.
        steps = steps[average - 1 :] or steps
    return [_averaged(checkpoints, step, average, which) for step in steps]


def check_bases(chosen: Sequence[ChosenCheckpoint], base: str | None) -> None:
    """Checks the bases of checkpoints, before anything is compiled.

    Args:
        base: what `--base` names.

    Raises:
        UserError: if a base is not found, damaged or another one, or if `--base` has no effect.
    """
    for one in chosen:
        for step in one.steps:
            try:
                has_base = one.checkpoints.base(step) is not None
            except Damaged:
                # Reported when the checkpoint is read; it may also be deleted meanwhile.
                continue
            if base is not None and not has_base:
                raise UserError(
                    f"--base is for checkpoints that hold an adapter alone, got --base={base} and "
                    f"{one.checkpoints.path(step)}, which is complete; leave it out"
                )


def found_checkpoint(folder: pathlib.Path, text: str) -> str:
    """Returns the directory of a checkpoint: `folder` itself or its latest one.

    Raises:
        UserError: if there is none, listing what `--checkpoint` takes.
    """
    found = find_checkpoint(folder)
    if found is None:
        problem = "has no checkpoint" if folder.is_dir() else "not found"
        raise UserError(f"--checkpoint={text} {problem}; it takes {CHECKPOINT_FORMS}")
    return found


def model_dir_of(text: str) -> pathlib.Path | None:
    """Returns the MODEL_DIR that `--checkpoint` names, if it names one with a `config.gin`."""
    folder = checkpoint_name(text).folder
    if folder is None:
        return None
    run = folder.absolute()
    if run.parent.name == FOLDER:
        run = run.parent.parent
    return run if (run / "config.gin").is_file() else None


def open_run(model_dir: str, base: str | None = None) -> StoredCheckpoints:
    """Returns the checkpoints of a run.

    Raises:
        UserError: if there are none.
    """
    folder = pathlib.Path(model_dir) / FOLDER
    if not folder.is_dir():
        raise UserError(f"{model_dir} has no checkpoint; train it first, or use --checkpoint")
    return StoredCheckpoints(folder, base)


def _averaged(
    checkpoints: StoredCheckpoints, step: int, average: int, which: str | None
) -> ChosenCheckpoint:
    until = [each for each in checkpoints.steps() if each <= step]
    if len(until) < average:
        raise UserError(
            f"--average={average} needs that many checkpoints up to step {step}, got {len(until)} "
            f"in {checkpoints.directory}; train with train.keep_checkpoints={average}"
        )
    return ChosenCheckpoint(checkpoints, tuple(until[-average:]), which)

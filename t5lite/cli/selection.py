"""Which checkpoints a command works on: `--checkpoint` and `--average`."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from t5lite.core.errors import UserError
from t5lite.data.text import vocabularies
from t5lite.data.text.vocabularies import Vocabulary
from t5lite.models import description
from t5lite.models.architectures import Model
from t5lite.training.checkpoints import FOLDER, Checkpoints, find_checkpoint, open_checkpoint


@dataclasses.dataclass(frozen=True)
class Chosen:
    """One checkpoint, or the mean of several that end with it.

    Args:
        steps: those whose parameters are averaged, the last being its own.
    """

    checkpoints: Checkpoints
    steps: tuple[int, ...]

    @property
    def step(self) -> int:
        """Its own."""
        return self.steps[-1]

    @property
    def path(self) -> str:
        """Its folder."""
        return self.checkpoints.path(self.step)

    @property
    def saved_at(self) -> int:
        """When its own was saved, in nanoseconds."""
        return self.checkpoints.saved_at(self.step)

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What was saved with it."""
        return self.checkpoints.about(self.step)

    def count_files(self) -> int:
        """Returns how many files there are of them all: fewer while they are being deleted."""
        return sum(
            len(names) for step in self.steps for *_, names in os.walk(self.checkpoints.path(step))
        )

    def check_same(self, model: Model, vocabulary: Vocabulary) -> None:
        """Raises a UserError where it was trained as another model or with another vocabulary."""
        description.check_same(self.about, model, f"checkpoint {self.path}")
        self.check_vocabulary(vocabulary)

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raises a UserError where it was trained with another vocabulary."""
        fingerprint = self.about.get("vocabulary_fingerprint")
        vocabularies.check_same_vocabulary(fingerprint, vocabulary, f"checkpoint {self.path}")

    def params(self, shapes: Any) -> Any:
        """Returns the parameters, placed as the abstract `shapes` say."""
        return self.checkpoints.restore_average(self.steps, shapes)


@contextlib.contextmanager
def chosen_checkpoints(model_dir: str | None, which: str, average: int) -> Iterator[list[Chosen]]:
    """Yields the checkpoints that a user names.

    Args:
        model_dir: of the run; None where there is none, so that `which` has to be a folder.
        which: "latest", "best", "all", steps with commas between them, or a folder: a MODEL_DIR,
            for its latest, or a checkpoints/STEP. One that is called as these are is `./best`.
        average: so many checkpoints that end with each are averaged.

    Raises:
        UserError: where there is no such checkpoint.
    """
    folder = pathlib.Path(which).expanduser()
    named = which in ("latest", "best", "all") or which.replace(",", "").isdigit()
    if model_dir is None or "/" in which or (folder.is_dir() and not named):
        with open_checkpoint(find_checkpoint(folder) or which) as (checkpoints, step):
            yield [_averaged(checkpoints, step, average)]
        return
    with open_run(model_dir) as checkpoints:
        steps = _steps(checkpoints, which)
        if which == "all":
            # As many as are averaged end with each but the first of them.
            steps = steps[average - 1 :] or steps
        yield [_averaged(checkpoints, step, average) for step in steps]


@contextlib.contextmanager
def open_run(model_dir: str) -> Iterator[Checkpoints]:
    """Opens the checkpoints of a run for reading.

    Raises:
        UserError: where there are none.
    """
    folder = pathlib.Path(model_dir) / FOLDER
    if not folder.is_dir():
        raise UserError(f"{model_dir} holds no checkpoint; train it first, or use --checkpoint")
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        yield checkpoints


def _steps(checkpoints: Checkpoints, which: str) -> list[int]:
    found = checkpoints.steps()
    if not found:
        raise UserError(
            f"{checkpoints.directory} holds no checkpoint; train it first, or use --checkpoint"
        )
    if which == "latest":
        return found[-1:]
    if which == "all":
        return found
    if which == "best":
        if (best := checkpoints.best()) is None:
            raise UserError(
                f"{checkpoints.directory} holds no checkpoint that is ranked; train with "
                "train.keep_highest or train.keep_lowest"
            )
        return [best]
    for name in which.split(","):
        if not (name.isdigit() and int(name) in found):
            have = ", ".join(map(str, found))
            raise UserError(
                f"{checkpoints.directory} holds no checkpoint {name!r}; it has {have}, and there "
                "are latest, best and all"
            )
    return [int(name) for name in which.split(",")]


def _averaged(checkpoints: Checkpoints, step: int, average: int) -> Chosen:
    until = [each for each in checkpoints.steps() if each <= step]
    if len(until) < average:
        raise UserError(
            f"--average={average} needs so many checkpoints up to step {step}, got {len(until)} in "
            f"{checkpoints.directory}; train with train.keep_checkpoints={average}"
        )
    return Chosen(checkpoints, tuple(until[-average:]))

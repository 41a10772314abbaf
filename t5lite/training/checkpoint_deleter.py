"""Deletion of checkpoints in one change, so that a killed process leaves no half of one behind."""

import contextlib
import pathlib
import shutil
from collections.abc import Sequence

import jax

# Orbax removes directories with this suffix when it opens their parent.
_TEMPORARY = ".orbax-checkpoint-tmp"


class CheckpointDeleter:
    """What Orbax calls to delete checkpoints of `directory`: each is renamed before.

    Orbax itself deletes file by file under the name of the checkpoint. What a kill leaves of it
    would count as a damaged checkpoint.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory

    def delete(self, step: int) -> None:
        """Deletes one checkpoint, in the first process."""
        if jax.process_index() != 0:
            return
        deleted = self._directory / f"{step}.deleted{_TEMPORARY}"
        with contextlib.suppress(FileNotFoundError):
            (self._directory / str(step)).rename(deleted)
            shutil.rmtree(deleted)

    def delete_steps(self, steps: Sequence[int]) -> None:
        """Deletes several checkpoints."""
        for step in steps:
            self.delete(step)

    def close(self) -> None:
        """Does nothing: `delete` returns when it is done."""

"""Scores of checkpoints, recorded as they are made, while a run may be saving and deleting them."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.cli.documents import finite, json_document
from t5lite.cli.selection import ChosenCheckpoint
from t5lite.cli.work_progress import WorkProgress
from t5lite.core.records import Schema, read_json_lines
from t5lite.core.run_directory import append_record
from t5lite.inference.evaluate import Evaluator
from t5lite.parallel.processes import everywhere
from t5lite.training.checkpoint_errors import Damaged
from t5lite.training.run import Run
from t5lite.training.stored_checkpoints import StoredCheckpoints

# How often an unreadable checkpoint is tried again.
RETRY_SECONDS = 1.0
# The files of a checkpoint that is being deleted change within the first; within the second, every
# process sees the files that the first process sees.
DELETION_SECONDS = 5.0
VISIBILITY_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class CheckpointScorer:
    """Scores checkpoints of one run.

    Args:
        run: with the task and the split to score.
        evaluate: from parameters to scores.
        shapes: of the parameters, with their shardings.
        identity: what scores depend on besides the checkpoint; part of every result.
        progress: shows the progress of `evaluate`.
    """

    run: Run
    evaluate: Evaluator
    shapes: Any
    identity: Mapping[str, Any]
    progress: WorkProgress

    def results(self, chosen: ChosenCheckpoint) -> list[dict[str, Any]]:
        """Returns the result of a checkpoint and records it at once: later ones may fail.

        If the training run deleted the checkpoint first, there is none, and a log line says so.
        """
        self.progress.log(f"restoring {chosen.path}")
        found = self._read(chosen)
        if found is None:
            self.progress.log(f"step {chosen.step} was deleted before it was scored")
            return []
        saved_at, params = found
        with self.progress:
            scores = self.evaluate(params)
        result = {
            "checkpoint": chosen.path,
            "step": chosen.step,
            "split": self.run.eval_split,
            **({"averaged_steps": list(chosen.steps)} if len(chosen.steps) > 1 else {}),
            **({} if chosen.which is None else {"parameters": chosen.which}),
            "saved_at": saved_at,
            **self.identity,
            **finite(scores),
        }
        if jax.process_index() == 0:
            append_record(self.record, **result)
        return [result]

    def _read(self, chosen: ChosenCheckpoint) -> tuple[int, Any] | None:
        """Returns when a checkpoint was saved, and its parameters; None if it was deleted."""
        files = -1
        unchanged_since = 0.0
        while True:
            wrong = None
            try:
                chosen.check_same(self.run.model, self.run.task.vocabulary)
                found = (chosen.saved_at, chosen.params(self.shapes))
            except Damaged as error:
                wrong = error
            # All processes decide together, or some would wait for the others.
            if everywhere(wrong is None):
                return found
            # It may be in the course of deletion, or not yet visible to every process. The view of
            # the first process decides.
            if (now := chosen.count_files()) != files:
                files = now
                unchanged_since = time.monotonic()
            time.sleep(RETRY_SECONDS)
            patience = DELETION_SECONDS if wrong else VISIBILITY_SECONDS
            exists = set(chosen.steps) <= set(chosen.checkpoints.steps())
            seen = np.array([exists, time.monotonic() - unchanged_since > patience])
            exists, is_over = multihost_utils.broadcast_one_to_all(seen).tolist()
            if not exists:
                return None
            if is_over:
                raise wrong or Damaged(chosen.path, "another process cannot read it")

    @property
    def record(self) -> pathlib.Path:
        """The file of results."""
        return pathlib.Path(self.run.model_dir) / "eval" / f"{self.run.eval_split}.jsonl"

    def open_record(self) -> None:
        """Raises an OSError if results cannot be recorded, before anything is scored."""
        if jax.process_index() == 0:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            self.record.open("a").close()

    def recorded(self, checkpoints: StoredCheckpoints, which: str | None = None) -> set[int]:
        """Returns the steps with a recorded result that would be the same today.

        Args:
            which: of the parameters; see `StoredCheckpoints.param_paths`.
        """
        done = set()
        results = read_json_lines(self.record, Schema(), "delete that line to score it again")
        for step in checkpoints.steps():
            wanted = {"checkpoint": checkpoints.path(step), "averaged_steps": None, **self.identity}
            wanted["parameters"] = which
            with contextlib.suppress(Damaged):
                wanted["saved_at"] = checkpoints.saved_at(step)
            if any(all(r.get(name) == wanted[name] for name in wanted) for r in results):
                done.add(step)
        return done


def print_json(results: list[dict[str, Any]]) -> None:
    """Prints results as one JSON document, in the first process."""
    if jax.process_index() == 0:
        print(json_document(results), flush=True)

"""A trial of a vectorized sweep in training: its resources, and what is due after a step."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5lite.core.due import due
from t5lite.training.checkpoints import Checkpoints
from t5lite.training.early_stopping import Improvements
from t5lite.training.feed import Feed
from t5lite.training.phases import Phases
from t5lite.training.program import TrainProgram
from t5lite.training.restore import about_checkpoint
from t5lite.training.run import Run
from t5lite.training.stacked import StackedProgram
from t5lite.training.state import TrainState
from t5lite.training.step_check import StepCheck
from t5lite.training.throughput import Throughput
from t5lite.training.writers.writers import Writers

ScoreParams = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorizedTrial:
    """A run that waits for a slot.

    Args:
        config_text: the content of its `config.gin`.
        command: the command that would train it alone.
    """

    run: Run
    config_text: str
    command: Sequence[str]


@dataclasses.dataclass(kw_only=True)
class Slot:
    """A trial in training.

    Args:
        index: of the slot in the stacked arrays.
        step: number of completed steps.
        phase: enters a phase of the sweep.
        record_goodput: records the seconds of all phases at a step.
        check: of its steps since it started or returned.
        improvements: of its score.
        resources: everything that is closed when the trial ends or returns to a checkpoint.
        attempt: the attempt of the trial, which closes `resources` when it ends.
        sums_of_steps: sums of all slots, for each step since the last log.
    """

    trial: VectorizedTrial
    program: TrainProgram
    index: np.int32
    step: int
    evaluate: ScoreParams
    checkpoints: Checkpoints
    feed: Feed
    writers: Writers
    throughput: Throughput
    phase: Phases
    record_goodput: Callable[[int], None]
    check: StepCheck
    improvements: Improvements
    resources: contextlib.ExitStack
    attempt: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    sums_of_steps: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def run(self) -> Run:
        """The run of the trial."""
        return self.trial.run


def log_evaluate_save(
    slot: Slot, stacked: StackedProgram, states: TrainState, *, stopping: bool
) -> dict[str, float] | None:
    """Does what is due after a step, in the order of the loop of one run; returns the scores.

    Raises:
        Divergence: if the trial must return to an earlier checkpoint.
    """
    run = slot.run
    step = slot.step
    evaluating = due(step, every=run.eval_every_steps, last=run.total_steps)
    saving = (
        due(step, every=run.checkpoint_every_steps, last=run.total_steps)
        or (evaluating and run.ranks_checkpoints)
        or stopping
    )
    if saving or due(step, every=run.log_every_steps):
        with slot.phase("wait"):
            sums_of_steps = jax.device_get(slot.sums_of_steps)
        sums_on_host = [
            {name: of_slots[slot.index] for name, of_slots in sums.items()}
            for sums in sums_of_steps
        ]
        slot.sums_of_steps.clear()
        slot.check.check(step, sums_on_host)
        metrics = slot.throughput.metrics(sums_on_host)
        slot.writers.write(step, "train", metrics)
        slot.record_goodput(step)
    if not (evaluating or saving):
        return None
    scores = None
    rank = None
    with slot.throughput.paused():
        state = stacked.read(states, slot.index)
        if evaluating:
            scores = slot.evaluate(state.evaluated_params)
            slot.writers.write(step, run.eval_split, scores)
            rank = run.rank(scores)
            slot.improvements.evaluated(step, rank)
        if saving:
            slot.check.saving(step, scores)
            with slot.phase("save"):
                about = about_checkpoint(
                    slot.program,
                    rank=rank,
                    data=slot.feed.state(),
                    improvements=slot.improvements.state(),
                )
                slot.checkpoints.save(step, state, about)
    return scores

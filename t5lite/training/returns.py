"""How a run that diverged returns to its last good checkpoint, or stops with a diagnosis."""

import pathlib
from collections.abc import Callable
from typing import TypeVar

import jax

from t5lite.core.errors import Diverged
from t5lite.parallel.processes import wait_for_all_processes
from t5lite.training.checkpoint_folders import FOLDER, move_aside
from t5lite.training.good_checkpoints import History, Return, read_history, write_history
from t5lite.training.run import Run
from t5lite.training.step_check import BAD_STEPS, Divergence
from t5lite.training.stored_checkpoints import StoredCheckpoints

# Beside `checkpoints`: those of a run that diverged, saved after the one that it returned to.
DIVERGED = "diverged_checkpoints"

_T = TypeVar("_T")


def with_returns(run: Run, train_once: Callable[[], _T], log: Callable[[str], None]) -> _T:
    """Returns what `train_once` returns, which starts again after each return.

    Args:
        train_once: trains from the latest checkpoint, or from the initial state.
        log: prints one line for each return.

    Raises:
        Diverged: if the run has no good checkpoint, or has returned to it often enough.
    """
    while True:
        try:
            return train_once()
        except Divergence as divergence:
            log(return_to_good(run, divergence))


def return_to_good(run: Run, divergence: Divergence) -> str:
    """Makes the last good checkpoint the latest, and returns a line that says so.

    Later checkpoints are moved aside, so that a run that stops here resumes from the good one. All
    processes must call it together.

    Raises:
        Diverged: if the run must stop.
    """
    folder = pathlib.Path(run.model_dir) / FOLDER
    history = read_history(folder)
    checkpoints = StoredCheckpoints(folder)
    steps = checkpoints.steps()
    target = _target(run, divergence, history, steps)
    batches = 0
    if target in steps:
        batches = int(checkpoints.about(target)["data"]["batches"])
    earlier = [each for each in history.returns if each.to_step == target]
    stops = run.bad_steps is None or len(earlier) >= run.bad_steps.max_returns
    made = Return(
        from_step=divergence.step,
        to_step=target,
        data_seed=run.stream_seed,
        first_batch=batches + 1,
        last_batch=divergence.batch,
        reason=divergence.reason,
    )
    # All have read the folder before it changes, and the change is complete before any goes on.
    wait_for_all_processes()
    if jax.process_index() == 0:
        # First, so that a run that is killed in between diverges and returns again.
        for step in steps:
            if step > target:
                move_aside(folder / str(step), DIVERGED)
        good = tuple(step for step in history.good if step <= target)
        returns = history.returns if stops else (*history.returns, made)
        write_history(folder, History(good=good, returns=returns))
    wait_for_all_processes()
    if stops:
        times = f"returned {len(earlier)} times to step {target}; " if earlier else ""
        raise Diverged(
            f"training diverged: {divergence.reason}; {times}lower the learning rate or set "
            f"train.max_gradient_norm, and restart to resume from step {target}, the last that "
            "proved good"
        )
    return (
        f"training diverged: {divergence.reason}; returning to step {target} and skipping batches "
        f"{made.first_batch} to {made.last_batch}"
    )


def _target(run: Run, divergence: Divergence, history: History, steps: list[int]) -> int:
    """Returns the step of the checkpoint to return to; that of the start for the initial state."""
    start = divergence.start
    candidates = [*steps, start.step] if start.is_new else steps
    if good := [step for step in candidates if step in history.good]:
        return max(good)
    # Of earlier releases, or unproved because attempts were killed.
    if older := [step for step in steps if step < start.step]:
        return max(older)
    if not start.is_new:
        raise Diverged(
            f"no step from {run.model_dir}/{FOLDER}/{start.step} is good: {divergence.reason}; it "
            "is the only checkpoint: use another MODEL_DIR, or delete it to begin again"
        )
    if run.initial_checkpoint is not None:
        raise Diverged(
            f"no step from train.initial_checkpoint {run.initial_checkpoint} is good: "
            f"{divergence.reason}; start from another checkpoint"
        )
    raise Diverged(
        f"no step from the initial parameters is good: {divergence.reason}; look at the batches in "
        f"{run.model_dir}/{BAD_STEPS}, or compute with T5Config.dtype='float32'"
    )

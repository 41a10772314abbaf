"""The training loop, in the order in which it happens.

Restore or initialise; compile; then for each step take a batch and step, and when they are due log,
evaluate and save; stop when asked.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from t5lite.core.due import due
from t5lite.core.run_directory import Preempted, write_result
from t5lite.parallel.dispatch import settle
from t5lite.parallel.sharding import batch_sharding, make_global, on_mesh
from t5lite.training.feed import open_feed
from t5lite.training.preemption import stop_requests
from t5lite.training.program import TrainProgram
from t5lite.training.progress import Progress
from t5lite.training.restore import (
    about_checkpoint,
    find_start,
    open_checkpoints,
    restore_or_init,
)
from t5lite.training.state import TrainState
from t5lite.training.step import lower_train_step
from t5lite.training.throughput import Throughput, check_finite
from t5lite.training.writers.writers import open_writers


def train(
    program: TrainProgram,
    *,
    evaluate: Callable[[Any], dict[str, float]],
    config_text: str,
    command: Sequence[str] = (),
) -> TrainState:
    """Trains to `total_steps`, from the latest checkpoint in `model_dir` if it has one.

    Args:
        program: of the run, from `train_program`.
        evaluate: a function from parameters to the scores of the run's evaluation split.
        config_text: the resolved configuration, for writers; written once the run is known to fit.
        command: the command line, for writers.

    Returns:
        The state after the last step.

    Raises:
        UserError: if a checkpoint does not fit, or the loss is no longer finite.
        Preempted: if SIGTERM asked it to stop, after its state is saved.
    """
    run = program.run
    mesh = program.mesh
    model_dir = pathlib.Path(program.run.model_dir)
    is_first_process = jax.process_index() == 0
    to_devices = make_global(batch_sharding(mesh, run.batch_size), run.batch_size)
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_mesh(mesh))
        should_stop = stack.enter_context(stop_requests())

        # Restore or initialise.
        checkpoints = stack.enter_context(contextlib.closing(open_checkpoints(run)))
        checkpoints.check_room(program.state)
        start = find_start(program, checkpoints)
        progress = stack.enter_context(
            Progress(first_step=start.step, total_steps=run.total_steps, shown=is_first_process)
        )
        feed = open_feed(program, start.data, log=progress.log)
        batches = stack.enter_context(contextlib.closing(feed))
        state = restore_or_init(program, checkpoints, progress.log)
        if 0 < start.step >= run.total_steps:
            progress.log(f"nothing to train: train.total_steps is {run.total_steps}")
            if is_first_process:
                write_result(model_dir, start.step)
            return state
        writers = open_writers(run, start, config_text=config_text, command=command)
        stack.enter_context(contextlib.closing(writers))

        progress.log("compiling the train step")
        started = time.perf_counter()
        train_step = lower_train_step(program).compile()
        throughput = Throughput(run, compile_seconds=time.perf_counter() - started)

        if start.is_new:
            scores = evaluate(state.params)
            writers.write(start.step, run.eval_split, scores)
            progress.score(start.step, run.eval_split, scores)
            # Checks now that the score which ranks checkpoints exists.
            run.rank(scores)

        sums_of_steps: list[Any] = []
        throughput.restart()
        for step in range(start.step + 1, run.total_steps + 1):
            batch = throughput.next_batch(batches)
            state, sums = train_step(program.hyper, state, to_devices(batch))
            sums_of_steps.append(sums)
            settle(sums_of_steps, mesh)
            progress.advance(step)

            stopping = should_stop(step) and step < run.total_steps
            evaluating = due(step, every=run.eval_every_steps, last=run.total_steps)
            saving = (
                due(step, every=run.checkpoint_every_steps, last=run.total_steps)
                or (evaluating and run.ranks_checkpoints)
                or stopping
            )
            if saving or due(step, every=run.log_every_steps):
                metrics = throughput.metrics(jax.device_get(sums_of_steps))
                sums_of_steps.clear()
                check_finite(metrics, step, checkpoints)
                writers.write(step, "train", metrics)
                progress.report(step, metrics)
            with throughput.paused():
                rank = None
                if evaluating:
                    scores = evaluate(state.params)
                    writers.write(step, run.eval_split, scores)
                    progress.score(step, run.eval_split, scores)
                    rank = run.rank(scores)
                # Last, so that the record of a step is complete before its checkpoint exists.
                if saving:
                    about = about_checkpoint(program, rank=rank, data=feed.state())
                    checkpoints.save(step, state, about)
            if stopping:
                raise Preempted(step)
    # Closing the checkpoints completed the last one.
    if is_first_process:
        write_result(model_dir, run.total_steps)
    return state

"""The training loop, in the order in which it happens.

Restore or initialise; compile; then for each step take a batch and step, and when they are due log,
evaluate and save; stop when asked, or when the score no longer improves. A run that diverges starts
again from its last good checkpoint.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from t5lite.core.due import due
from t5lite.core.run_directory import Preempted, write_result
from t5lite.parallel.dispatch import settle
from t5lite.parallel.sharding import batch_sharding, make_global, on_mesh
from t5lite.training.early_stopping import Improvements
from t5lite.training.feed import open_feed
from t5lite.training.frozen import load_frozen
from t5lite.training.goodput import goodput_record
from t5lite.training.hosts import HostTimes
from t5lite.training.phases import Phases, watched_phases
from t5lite.training.preemption import stop_requests
from t5lite.training.program import TrainProgram
from t5lite.training.progress import Progress
from t5lite.training.restore import (
    about_checkpoint,
    new_state,
    open_checkpoints,
    resume_latest,
    saved_part,
)
from t5lite.training.returns import with_returns
from t5lite.training.state import TrainState
from t5lite.training.step import CompiledStep, FrozenParams, compile_once
from t5lite.training.step_check import StepCheck
from t5lite.training.throughput import Throughput
from t5lite.training.writers.writers import open_writers


def train(
    program: TrainProgram,
    *,
    evaluate: Callable[[Any], dict[str, float]],
    config_text: str,
    command: Sequence[str] = (),
) -> TrainState:
    """Trains to `total_steps`, from the latest checkpoint in `model_dir` if it has one.

    A run that diverges returns to its last good checkpoint; it keeps its compiled step.

    Args:
        program: of the run, from `train_program`.
        evaluate: a function from parameters to the scores of the run's evaluation split.
        config_text: the resolved configuration, for writers; written once the run is known to fit.
        command: the command line, for writers.

    Returns:
        The state after the last step, or after the one with which it ended early.

    Raises:
        UserError: if a checkpoint does not fit, or the run diverged and must stop.
        Preempted: if SIGTERM asked it to stop, after its state is saved.
    """
    run = program.run
    with contextlib.ExitStack() as stack:
        phase = stack.enter_context(watched_phases(run.watchdog))
        model_dir = pathlib.Path(run.model_dir)
        record_goodput = stack.enter_context(goodput_record(phase, model_dir))
        stack.enter_context(on_mesh(program.mesh))
        should_stop = stack.enter_context(stop_requests())
        progress = Progress(run.total_steps, shown=jax.process_index() == 0)
        stack.enter_context(progress)
        session = _Session(
            evaluate=phase("evaluate")(evaluate),
            config_text=config_text,
            command=command,
            compiled=compile_once(program, progress.log),
            frozen=functools.cache(lambda: load_frozen(program.frozen, progress.log)),
            phase=phase,
            record_goodput=record_goodput,
            should_stop=should_stop,
            progress=progress,
        )
        return with_returns(run, lambda: _train_from_latest(program, session), progress.log)


class _Session(NamedTuple):
    """What a run keeps when it returns to a checkpoint."""

    evaluate: Callable[[Any], dict[str, float]]
    config_text: str
    command: Sequence[str]
    compiled: Callable[[], CompiledStep]
    frozen: Callable[[], FrozenParams]
    phase: Phases
    record_goodput: Callable[[int], None]
    should_stop: Callable[[int], bool]
    progress: Progress


def _train_from_latest(program: TrainProgram, session: _Session) -> TrainState:
    """Trains from the latest checkpoint to the last step, or to a `Divergence`."""
    evaluate = session.evaluate
    phase = session.phase
    progress = session.progress
    run = program.run
    mesh = program.mesh
    model_dir = pathlib.Path(run.model_dir)
    is_first_process = jax.process_index() == 0
    to_devices = make_global(batch_sharding(mesh, run.batch_size), run.batch_size)
    with contextlib.ExitStack() as stack:
        # Restore or initialise.
        checkpoints = stack.enter_context(phase.closing("save", open_checkpoints(run)))
        checkpoints.check_room(saved_part(program))
        with phase("restore"):
            start, state = resume_latest(program, checkpoints, progress.log)
        progress.begin(start.step)
        feed = open_feed(program, start.data, skip=start.skip, log=progress.log)
        batches = stack.enter_context(contextlib.closing(feed))
        with phase("restore"):
            state = state or new_state(program, checkpoints, progress.log)
            frozen = session.frozen()
        session.record_goodput(start.step)
        improvements = Improvements(run.early_stopping, run.ranking_score, start.improvements)
        if 0 < start.step >= run.total_steps or improvements.ended:
            why = improvements.ended or f"train.total_steps is {run.total_steps}"
            progress.log(f"nothing to train: {why}")
            if is_first_process:
                write_result(model_dir, start.step, improvements.ended)
            return state
        writers = open_writers(run, start, config_text=session.config_text, command=session.command)
        stack.enter_context(contextlib.closing(writers))

        with phase("compile"):
            train_step, compile_seconds = session.compiled()
        throughput = Throughput(program, compile_seconds=compile_seconds)

        step_check = StepCheck(run, start, feed, log=progress.log)
        if start.is_new:
            first_scores = evaluate(state.evaluated_params)
            writers.write(start.step, run.eval_split, first_scores)
            progress.score(start.step, run.eval_split, first_scores)
            # Checks now that the score which ranks checkpoints exists.
            improvements.evaluated(start.step, run.rank(first_scores))
            step_check.evaluated(first_scores)

        step = start.step
        sums_of_steps: list[Any] = []
        hosts = HostTimes(phase, progress.log)
        throughput.restart()
        for step in range(start.step + 1, run.total_steps + 1):
            with phase("data"):
                batch = throughput.next_batch(batches)
            with phase("step"):
                state, sums = train_step(program.hyper, state, to_devices(batch), frozen)
                sums_of_steps.append(sums)
            with phase("wait"):
                settle(sums_of_steps, mesh)
            progress.advance(step)

            stopping = session.should_stop(step) and step < run.total_steps
            evaluating = due(step, every=run.eval_every_steps, last=run.total_steps)
            saving = (
                due(step, every=run.checkpoint_every_steps, last=run.total_steps)
                or (evaluating and run.ranks_checkpoints)
                or stopping
            )
            if saving or due(step, every=run.log_every_steps):
                with phase("wait"):
                    sums_on_host = jax.device_get(sums_of_steps)
                sums_of_steps.clear()
                # First: a step from which the run returns is not recorded.
                step_check.check(step, sums_on_host)
                metrics = throughput.metrics(sums_on_host) | hosts.metrics()
                writers.write(step, "train", metrics)
                session.record_goodput(step)
                progress.report(step, metrics)
            with throughput.paused():
                scores = None
                rank = None
                if evaluating:
                    scores = evaluate(state.evaluated_params)
                    writers.write(step, run.eval_split, scores)
                    progress.score(step, run.eval_split, scores)
                    rank = run.rank(scores)
                    improvements.evaluated(step, rank)
                # Last, so that the record of a step is complete before its checkpoint exists.
                if saving:
                    step_check.saving(step, scores)
                    with phase("save"):
                        about = about_checkpoint(
                            program, rank=rank, data=feed.state(), improvements=improvements.state()
                        )
                        checkpoints.save(step, state, about)
            if improvements.ended:
                progress.log(f"the run ends {improvements.ended}")
                break
            if stopping:
                raise Preempted(step)
    # Closing the checkpoints completed the last one.
    if is_first_process:
        write_result(model_dir, step, improvements.ended)
    return state

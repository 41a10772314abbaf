"""Several trials in one program: stacked states, one step for all, one MODEL_DIR each.

Trials differ in numbers, which are inputs of the program. A slot holds one trial; when the trial
ends, the next one takes the slot.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.numbers import as_inputs
from t5lite.core.run_directory import Preempted, attempt, write_result
from t5lite.parallel.dispatch import settle
from t5lite.parallel.mesh import POPULATION, DeviceMesh
from t5lite.parallel.sharding import on_mesh
from t5lite.training.early_stopping import Improvements
from t5lite.training.feed import open_feed
from t5lite.training.frozen import load_frozen
from t5lite.training.goodput import goodput_record
from t5lite.training.one_program import check_one_program, numbers_of
from t5lite.training.phases import Phases, watched_phases
from t5lite.training.preemption import stop_requests
from t5lite.training.program import TrainProgram, train_program
from t5lite.training.restore import (
    RunStart,
    new_state,
    open_checkpoints,
    resume_latest,
    saved_part,
)
from t5lite.training.returns import return_to_good
from t5lite.training.run import Run
from t5lite.training.slot import ScoreParams, Slot, VectorizedTrial, log_evaluate_save
from t5lite.training.stacked import StackedProgram, compile_stacked, stack_batches, stack_numbers
from t5lite.training.step_check import Divergence, StepCheck
from t5lite.training.throughput import Throughput
from t5lite.training.watchdog import Watchdog
from t5lite.training.writers.writers import open_writers


@dataclasses.dataclass
class _Sweep:
    """The slots and the stacked arrays that belong to them."""

    size: int
    mesh: DeviceMesh
    phase: Phases
    trials: Iterator[VectorizedTrial]
    evaluate: Callable[[Run], ScoreParams]
    dropout: bool
    on_scores: Callable[[Run, int, Mapping[str, float]], bool]
    on_end: Callable[[Run, str | UserError], None]
    slots: dict[int, Slot] = dataclasses.field(default_factory=dict)
    program: TrainProgram | None = None
    stacked: StackedProgram | None = None
    # The numbers of each slot, and all of them stacked.
    hyper_of_slots: list[Any] = dataclasses.field(default_factory=list)
    hyper: Any = None
    states: Any = None
    # The parameters of models that do not train, which all slots share.
    frozen: Any = None
    # By MODEL_DIR: the last step of a trial that ended early, and why.
    ended_early: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)


def train_vectorized(
    trials: Iterator[VectorizedTrial],
    size: int,
    mesh: DeviceMesh,
    *,
    evaluate: Callable[[Run], ScoreParams],
    dropout: bool = True,
    watchdog: Watchdog | None = None,
    on_scores: Callable[[Run, int, Mapping[str, float]], bool] = lambda run, step, scores: False,
    on_end: Callable[[Run, str | UserError], None] = lambda run, outcome: None,
) -> None:
    """Trains `size` trials at a time, each as it would train alone.

    If the mesh has an axis `population`, its groups of devices share the slots.

    Args:
        trials: the next one is taken whenever a slot is free.
        evaluate: from a run to the function that scores its parameters.
        dropout: whether any trial has dropout: it is compiled for all, and a rate of 0 drops
            nothing.
        watchdog: limits of the phases; None for none.
        on_scores: called with each evaluation; returns whether to prune the trial. The result is
            ignored at step 0.
        on_end: called with how each trial ended: "finished", "pruned", or its error.

    Raises:
        UserError: if a trial needs another program than the first.
        Preempted: if SIGTERM asked to stop, after all trials are saved.
    """
    groups = mesh.shape.get(POPULATION, 1)
    batches: list[dict[str, np.ndarray]] = []
    sums_in_flight: list[Any] = []
    with contextlib.ExitStack() as stack:
        phase = stack.enter_context(watched_phases(watchdog))
        sweep = _Sweep(
            # The same number of slots for each group of devices.
            size=-(-size // groups) * groups,
            mesh=mesh,
            phase=phase,
            trials=trials,
            evaluate=evaluate,
            dropout=dropout,
            on_scores=on_scores,
            on_end=on_end,
        )
        stack.enter_context(on_mesh(mesh))
        should_stop = stack.enter_context(stop_requests())
        stack.push(lambda kind, error, trace: _close_all(sweep, error))
        _fill_slots(sweep)
        turn = 0
        while sweep.slots:
            turn += 1
            assert sweep.stacked is not None
            # A free slot steps too, on any batch; its result is never read.
            with phase("data"):
                new = {i: slot.throughput.next_batch(slot.feed) for i, slot in sweep.slots.items()}
            batches = batches or [next(iter(new.values()))] * sweep.size
            batches = [new.get(i, batch) for i, batch in enumerate(batches)]
            with phase("step"):
                sweep.states, sums = sweep.stacked.step(
                    sweep.hyper,
                    sweep.states,
                    stack_batches(batches, sweep.stacked.batch_shardings),
                    sweep.frozen,
                )
            sums_in_flight = [*sums_in_flight[-2:], sums]
            with phase("wait"):
                settle(sums_in_flight, mesh)
            stopping = should_stop(turn)
            for index in sorted(sweep.slots):
                _finish_step(sweep, sweep.slots[index], sums, stopping=stopping)
            if stopping and sweep.slots:
                raise Preempted(min(slot.step for slot in sweep.slots.values()))
            _fill_slots(sweep)


def _fill_slots(sweep: _Sweep) -> None:
    """Starts a waiting trial in every free slot."""
    for index in range(sweep.size):
        while index not in sweep.slots and (trial := next(sweep.trials, None)):
            if sweep.program is None:
                sweep.program = train_program(trial.run, sweep.mesh)
            check_one_program(sweep.program.run, trial.run, dropout=sweep.dropout)
            try:
                scores = _start_trial(sweep, np.int32(index), trial)
            except UserError as error:
                sweep.on_end(trial.run, error)
                continue
            if scores is not None:
                sweep.on_scores(trial.run, 0, scores)


def _start_trial(sweep: _Sweep, index: np.int32, trial: VectorizedTrial) -> dict[str, float] | None:
    """Starts an attempt of a trial in a slot, and returns the scores it starts with, if new."""
    run = trial.run
    model_dir = pathlib.Path(run.model_dir)
    model_dir.mkdir(parents=True, exist_ok=True)
    first_step = 0

    def record_result(kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            all_steps = (max(first_step, run.total_steps), None)
            write_result(model_dir, *sweep.ended_early.pop(run.model_dir, all_steps))

    with contextlib.ExitStack() as stack:
        stack.enter_context(attempt(model_dir, trial.command))
        # Called once the last checkpoint is complete, before the attempt ends.
        stack.push(record_result)
        record_goodput = stack.enter_context(goodput_record(sweep.phase, model_dir))
        resources = stack.enter_context(contextlib.ExitStack())
        start, scores = _fill_slot(sweep, index, trial, resources, record_goodput)
        first_step = start.step
        if int(index) not in sweep.slots:
            stack.close()
            sweep.on_end(run, "finished")
            return None
        sweep.slots[int(index)].attempt = stack.pop_all()
        return scores


def _fill_slot(
    sweep: _Sweep,
    index: np.int32,
    trial: VectorizedTrial,
    resources: contextlib.ExitStack,
    record_goodput: Callable[[int], None],
) -> tuple[RunStart, dict[str, float] | None]:
    """Restores or initialises a trial in a slot, unless it has no step left.

    Args:
        resources: closes what the trial uses until it ends, or returns to a checkpoint.

    Returns:
        The point from which it trains, and the scores that it starts with, if it is new.
    """
    assert sweep.program is not None
    run = trial.run
    program = sweep.program.of(run)
    phase = sweep.phase
    evaluate = phase("evaluate")(sweep.evaluate(run))
    checkpoints = resources.enter_context(phase.closing("save", open_checkpoints(run)))
    checkpoints.check_room(saved_part(program))
    with phase("restore"):
        start, state = resume_latest(program, checkpoints, log=lambda line: None)
    feed = resources.enter_context(
        contextlib.closing(open_feed(program, start.data, skip=start.skip, log=lambda line: None))
    )
    with phase("restore"):
        state = state or new_state(program, checkpoints, log=lambda line: None)
    record_goodput(start.step)
    improvements = Improvements(run.early_stopping, run.ranking_score, start.improvements)
    if improvements.ended:
        sweep.ended_early[run.model_dir] = (start.step, improvements.ended)
    if 0 < start.step >= run.total_steps or improvements.ended:
        return start, None
    writers = open_writers(run, start, config_text=trial.config_text, command=trial.command)
    resources.enter_context(contextlib.closing(writers))
    hyper = numbers_of(run, dropout=sweep.dropout)
    if sweep.stacked is None:
        with phase("compile"):
            sweep.stacked = compile_stacked(program, hyper, sweep.size)
        sweep.hyper_of_slots = [as_inputs(hyper)] * sweep.size
        sweep.states = sweep.stacked.init()
        with phase("restore"):
            sweep.frozen = load_frozen(program.frozen, log=lambda line: None)
    sweep.hyper_of_slots[index] = as_inputs(hyper)
    sweep.hyper = stack_numbers(sweep.hyper_of_slots)
    sweep.states = sweep.stacked.write(sweep.states, state, index)
    throughput = Throughput(program, compile_seconds=sweep.stacked.compile_seconds)
    check = StepCheck(run, start, feed, log=lambda line: None)
    scores = None
    if start.is_new:
        scores = evaluate(state.evaluated_params)
        check.evaluated(scores)
        writers.write(start.step, run.eval_split, scores)
        improvements.evaluated(start.step, run.rank(scores))
    throughput.restart()
    sweep.slots[int(index)] = Slot(
        trial=trial,
        program=program,
        index=index,
        step=start.step,
        evaluate=evaluate,
        checkpoints=checkpoints,
        feed=feed,
        writers=writers,
        throughput=throughput,
        phase=phase,
        record_goodput=record_goodput,
        check=check,
        improvements=improvements,
        resources=resources,
    )
    return start, scores


def _return_to_good(sweep: _Sweep, slot: Slot, divergence: Divergence) -> None:
    """Restores a trial in its slot from its last good checkpoint, or ends it."""
    del sweep.slots[int(slot.index)]
    try:
        slot.resources.close()
        return_to_good(slot.run, divergence)
        _fill_slot(sweep, slot.index, slot.trial, slot.resources, slot.record_goodput)
    except UserError as error:
        slot.attempt.__exit__(type(error), error, None)
        sweep.on_end(slot.run, error)
        return
    sweep.slots[int(slot.index)].attempt = slot.attempt


def _finish_step(sweep: _Sweep, slot: Slot, sums: Mapping[str, Any], *, stopping: bool) -> None:
    """Logs, evaluates and saves a trial after a step as they are due, and frees its slot if it
    has ended."""
    slot.step += 1
    slot.sums_of_steps.append(sums)
    run = slot.run
    assert sweep.stacked is not None
    try:
        scores = log_evaluate_save(slot, sweep.stacked, sweep.states, stopping=stopping)
    except Divergence as divergence:
        _return_to_good(sweep, slot, divergence)
        return
    except UserError as error:
        _close(sweep, slot, error)
        sweep.on_end(run, error)
        return
    if slot.improvements.ended:
        sweep.ended_early[run.model_dir] = (slot.step, slot.improvements.ended)
    elif slot.step < run.total_steps:
        if scores is not None and sweep.on_scores(run, slot.step, scores):
            _close(sweep, slot, Preempted(slot.step))
            sweep.on_end(run, "pruned")
        return
    try:
        _close(sweep, slot, None)
    except UserError as error:
        # Of the last checkpoint, which is written while training continues.
        sweep.on_end(run, error)
        return
    sweep.on_end(run, "finished")


def _close(sweep: _Sweep, slot: Slot, error: BaseException | None) -> None:
    del sweep.slots[int(slot.index)]
    if error is None:
        slot.attempt.close()
    else:
        slot.attempt.__exit__(type(error), error, None)


def _close_all(sweep: _Sweep, error: BaseException | None) -> None:
    """Closes all trials after an error, or after a `Preempted`, for which they are saved."""
    for slot in list(sweep.slots.values()):
        with contextlib.suppress(UserError):
            _close(sweep, slot, error)

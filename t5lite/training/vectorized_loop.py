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
from t5lite.training.feed import open_feed
from t5lite.training.one_program import check_one_program, numbers_of
from t5lite.training.preemption import stop_requests
from t5lite.training.program import TrainProgram, train_program
from t5lite.training.restore import (
    find_start,
    open_checkpoints,
    restore_or_init,
)
from t5lite.training.run import Run
from t5lite.training.slot import ScoreParams, Slot, VectorizedTrial, log_evaluate_save
from t5lite.training.stacked import StackedProgram, compile_stacked, stack_batches, stack_numbers
from t5lite.training.throughput import Throughput
from t5lite.training.writers.writers import open_writers


@dataclasses.dataclass
class _Sweep:
    """The slots and the stacked arrays that belong to them."""

    size: int
    mesh: DeviceMesh
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


def train_vectorized(
    trials: Iterator[VectorizedTrial],
    size: int,
    mesh: DeviceMesh,
    *,
    evaluate: Callable[[Run], ScoreParams],
    dropout: bool = True,
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
        on_scores: called with each evaluation; returns whether to prune the trial. The result is
            ignored at step 0.
        on_end: called with how each trial ended: "finished", "pruned", or its error.

    Raises:
        UserError: if a trial needs another program than the first.
        Preempted: if SIGTERM asked to stop, after all trials are saved.
    """
    groups = mesh.shape.get(POPULATION, 1)
    sweep = _Sweep(
        # The same number of slots for each group of devices.
        size=-(-size // groups) * groups,
        mesh=mesh,
        trials=trials,
        evaluate=evaluate,
        dropout=dropout,
        on_scores=on_scores,
        on_end=on_end,
    )
    batches: list[dict[str, np.ndarray]] = []
    sums_in_flight: list[Any] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_mesh(mesh))
        should_stop = stack.enter_context(stop_requests())
        stack.push(lambda kind, error, trace: _close_all(sweep, error))
        _fill_slots(sweep)
        turn = 0
        while sweep.slots:
            turn += 1
            assert sweep.stacked is not None
            # A free slot steps too, on any batch; its result is never read.
            new = {i: slot.throughput.next_batch(slot.feed) for i, slot in sweep.slots.items()}
            batches = batches or [next(iter(new.values()))] * sweep.size
            batches = [new.get(i, batch) for i, batch in enumerate(batches)]
            sweep.states, sums = sweep.stacked.step(
                sweep.hyper,
                sweep.states,
                stack_batches(batches, sweep.stacked.batch_shardings),
            )
            sums_in_flight = [*sums_in_flight[-2:], sums]
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
    """Restores or initialises a trial in a slot, and returns the scores it starts with, if new."""
    assert sweep.program is not None
    run = trial.run
    model_dir = pathlib.Path(trial.run.model_dir)
    program = sweep.program.of(run)
    evaluate = sweep.evaluate(run)
    model_dir.mkdir(parents=True, exist_ok=True)
    completed_steps = run.total_steps

    def record_result(kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            write_result(model_dir, completed_steps)

    with contextlib.ExitStack() as stack:
        stack.enter_context(attempt(model_dir, trial.command))
        # Called once the last checkpoint is complete, before the attempt ends.
        stack.push(record_result)
        checkpoints = stack.enter_context(contextlib.closing(open_checkpoints(run)))
        checkpoints.check_room(program.state)
        start = find_start(program, checkpoints)
        feed = stack.enter_context(
            contextlib.closing(open_feed(program, start.data, log=lambda line: None))
        )
        state = restore_or_init(program, checkpoints, log=lambda line: None)
        if 0 < start.step >= run.total_steps:
            completed_steps = start.step
            stack.close()
            sweep.on_end(run, "finished")
            return None
        writers = open_writers(run, start, config_text=trial.config_text, command=trial.command)
        stack.enter_context(contextlib.closing(writers))
        hyper = numbers_of(run, dropout=sweep.dropout)
        if sweep.stacked is None:
            sweep.stacked = compile_stacked(program, hyper, sweep.size)
            sweep.hyper_of_slots = [as_inputs(hyper)] * sweep.size
            sweep.states = sweep.stacked.init()
        sweep.hyper_of_slots[index] = as_inputs(hyper)
        sweep.hyper = stack_numbers(sweep.hyper_of_slots)
        sweep.states = sweep.stacked.write(sweep.states, state, index)
        throughput = Throughput(run, compile_seconds=sweep.stacked.compile_seconds)
        scores = None
        if start.is_new:
            scores = evaluate(state.params)
            writers.write(start.step, run.eval_split, scores)
            run.rank(scores)
        throughput.restart()
        sweep.slots[int(index)] = Slot(
            run=run,
            program=program,
            index=index,
            step=start.step,
            evaluate=evaluate,
            checkpoints=checkpoints,
            feed=feed,
            writers=writers,
            throughput=throughput,
            resources=stack.pop_all(),
        )
        return scores


def _finish_step(sweep: _Sweep, slot: Slot, sums: Mapping[str, Any], *, stopping: bool) -> None:
    """Logs, evaluates and saves a trial after a step as they are due, and frees its slot if it
    has ended."""
    slot.step += 1
    slot.sums_of_steps.append(sums)
    run = slot.run
    assert sweep.stacked is not None
    try:
        scores = log_evaluate_save(slot, sweep.stacked, sweep.states, stopping=stopping)
    except UserError as error:
        _close(sweep, slot, error)
        sweep.on_end(run, error)
        return
    if slot.step < run.total_steps:
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
        slot.resources.close()
    else:
        slot.resources.__exit__(type(error), error, None)


def _close_all(sweep: _Sweep, error: BaseException | None) -> None:
    """Closes all trials after an error, or after a `Preempted`, for which they are saved."""
    for slot in list(sweep.slots.values()):
        with contextlib.suppress(UserError):
            _close(sweep, slot, error)

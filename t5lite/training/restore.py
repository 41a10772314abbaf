"""Where a run starts: its latest checkpoint, another run's checkpoint, or new parameters."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.models.description import check_same, describe
from t5lite.training.checkpoints import FOLDER, Checkpoints, open_checkpoint
from t5lite.training.partial_restore import as_table, restore_by_rules
from t5lite.training.program import TrainProgram
from t5lite.training.run import Run
from t5lite.training.state import TrainState, initial_opt_state

# Prints one line.
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunStart:
    """The point from which a run trains.

    Args:
        step: number of completed steps.
        is_new: whether MODEL_DIR has no checkpoint yet.
        data: the saved position in the data; None starts from the first batch.
    """

    step: int
    is_new: bool
    data: dict[str, Any] | None


def open_checkpoints(run: Run) -> Checkpoints:
    """Opens the checkpoints of a run for writing; the caller closes them."""
    return Checkpoints(
        pathlib.Path(run.model_dir) / FOLDER,
        keep=run.keep_checkpoints,
        keep_every_steps=run.keep_every_steps,
        keep_best=run.ranks_checkpoints,
    )


def find_start(program: TrainProgram, checkpoints: Checkpoints) -> RunStart:
    """Returns the point from which a run trains.

    Raises:
        UserError: if the latest checkpoint is of another run or model, or if
            `train.initial_checkpoint` has already reached `train.total_steps`.
    """
    run = program.run
    if steps := checkpoints.steps():
        data = _saved_data(program, checkpoints, steps[-1])
        return RunStart(step=steps[-1], is_new=False, data=data)
    step = 0
    if run.initial_checkpoint is not None and run.restore_optimizer:
        with open_checkpoint(run.initial_checkpoint) as (_, step):
            pass
    if 0 < step >= run.total_steps:
        raise UserError(
            f"train.initial_checkpoint is of step {step} already: train.total_steps must be over "
            f"it, got {run.total_steps}"
        )
    return RunStart(step=step, is_new=True, data=None)


def _saved_data(program: TrainProgram, checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    """Returns the position in the data at a checkpoint, which must be one of this run."""
    run = program.run
    saved = checkpoints.about(step)
    if "data" not in saved:
        raise UserError(
            f"{run.model_dir} contains a converted checkpoint and no run; use another MODEL_DIR, "
            f"and train.initial_checkpoint={checkpoints.path(step)} to start from it"
        )
    if saved["seed"] != run.seed:
        raise UserError(
            f"{run.model_dir} was trained with seed {saved['seed']}, got {run.seed}: use that "
            "seed, or another MODEL_DIR; train.data_seed changes the data alone"
        )
    check_same(saved, run.model, run.model_dir)
    _check_trainable(program, saved, run.model_dir)
    data: dict[str, Any] = saved["data"]
    return data


def restore_or_init(program: TrainProgram, checkpoints: Checkpoints, log: Log) -> TrainState:
    """Returns the latest saved state, or a new one.

    A new state takes its parameters from `train.initial_checkpoint` if that is set, and the
    optimizer state too with `train.restore_optimizer`.

    Raises:
        UserError: if a checkpoint does not fit the model or the optimizer.
    """
    run = program.run
    if steps := checkpoints.steps():
        log(f"resuming at step {steps[-1]} from {run.model_dir}")
        if run.initial_checkpoint is not None:
            log(
                f"train.initial_checkpoint {run.initial_checkpoint} is not used: {run.model_dir} "
                f"already holds step {steps[-1]}; name another MODEL_DIR to start from it"
            )
        return checkpoints.restore(steps[-1], program.state)
    if run.initial_checkpoint is None:
        return program.init(program.hyper)
    with open_checkpoint(run.initial_checkpoint) as (source, step):
        _log_differences(run, source.about(step), log)
        if run.restore_optimizer:
            if "opt_state" not in source.metadata(step):
                raise UserError(
                    f"train.restore_optimizer: {run.initial_checkpoint} holds no optimizer state; "
                    "T5X checkpoints have one if converted with convert.optimizer_state"
                )
            _check_trainable(program, source.about(step), run.initial_checkpoint)
            log(f"starting from step and state of {run.initial_checkpoint}")
            return source.restore(step, program.state)
        state = program.init(program.hyper)
        params, origins = restore_by_rules(source, step, state.params, run.restore_rules)
    log(f"starting from the parameters of {run.initial_checkpoint}")
    for line in as_table(origins) if run.restore_rules else ():
        log(line)
    # Frees the optimizer state of the new parameters before the one of the restored is made.
    state = dataclasses.replace(state, params=params, opt_state=None)
    shardings = jax.tree.map(lambda x: x.sharding, program.state.opt_state)
    new_opt_state = jax.jit(
        lambda hyper, params: initial_opt_state(hyper, params, program.param_axes, run.trainable),
        out_shardings=shardings,
    )
    return dataclasses.replace(state, opt_state=new_opt_state(program.hyper, params))


def _log_differences(run: Run, about: dict[str, Any], log: Log) -> None:
    """Logs that parameters of equal shapes had another meaning in the initial checkpoint."""
    try:
        check_same(about, run.model, f"{run.initial_checkpoint}")
    except UserError as error:
        if not run.restore_rules:
            log(f"train.initial_checkpoint is of another model: {error}")
    saved = about.get("vocabulary_fingerprint")
    if saved not in (None, run.task.vocabulary.fingerprint):
        log(f"train.initial_checkpoint was trained with another vocabulary: {saved}")


def _check_trainable(program: TrainProgram, about: dict[str, Any], owner: str) -> None:
    """Checks that the optimizer state of a checkpoint is of the parameters that train."""
    names = set(by_name(program.state.params))
    saved = set(about.get("trainable", names))
    mine = set(program.trainable)
    if differing := sorted(saved ^ mine):
        was, now = ("trained", "constant") if differing[0] in saved else ("constant", "trained")
        raise UserError(
            f"train.trainable must select the parameters that {owner} trained: {differing[0]} was "
            f"{was} and is {now}; use the same patterns, or another MODEL_DIR with "
            "train.initial_checkpoint, whose optimizer state is new"
        )


def about_checkpoint(
    program: TrainProgram, *, rank: float | None, data: dict[str, Any]
) -> dict[str, Any]:
    """Returns what is saved with the state of a run.

    Args:
        rank: of the checkpoint among those that are kept; None if it has none.
        data: the position in the data after the saved step.
    """
    run = program.run
    trainable = program.trainable
    is_all = len(trainable) == len(by_name(program.state.params))
    return {
        **({} if is_all else {"trainable": trainable}),
        "seed": run.seed,
        "model": describe(run.model),
        "vocabulary": run.task.vocabulary.describe(),
        "vocabulary_fingerprint": run.task.vocabulary.fingerprint,
        "rank": rank,
        "data": data,
    }

"""Where a run starts: its latest checkpoint, another run's checkpoint, or new parameters."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.traverse_util
import jax

from t5lite.core.counts import counted
from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.models.adapted_maps import added_names, values_from_kernels
from t5lite.models.description import check_same, describe
from t5lite.models.initial_text import values_from_texts
from t5lite.parallel.processes import from_first_process
from t5lite.training.about import LENGTHS
from t5lite.training.bad_steps import no_recent_steps
from t5lite.training.base_checkpoint import Base, with_params
from t5lite.training.base_dtype import (
    as_in_checkpoints,
    check_left_out,
    from_checkpoint,
    with_float_kernels,
)
from t5lite.training.checkpoint_errors import Damaged, read_together
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.checkpoint_names import find_checkpoint, open_checkpoint
from t5lite.training.checkpoints import Checkpoints
from t5lite.training.feed import check_position
from t5lite.training.frozen import check_same_frozen, describe_frozen
from t5lite.training.good_checkpoints import read_history
from t5lite.training.partial_restore import Origin, as_table, restore_by_rules
from t5lite.training.program import TrainProgram
from t5lite.training.run import STOP, Run
from t5lite.training.state import TrainState, initial_average, initial_opt_state
from t5lite.training.state_reading import is_array
from t5lite.training.stored_checkpoints import StoredCheckpoints
from t5lite.training.trainable import split_by_name

# Prints one line.
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunStart:
    """The point from which a run trains.

    Args:
        step: number of completed steps.
        is_new: whether MODEL_DIR has no checkpoint yet.
        data: the saved position in the data; None starts from the first batch.
        skip: pairs (first, last) of batches that are skipped because the run returned.
        improvements: the best score so far and since when, saved; None if there is none.
    """

    step: int
    is_new: bool
    data: dict[str, Any] | None
    skip: Sequence[tuple[int, int]] = ()
    improvements: dict[str, Any] | None = None


def open_checkpoints(run: Run) -> Checkpoints:
    """Opens the checkpoints of a run for writing; the caller closes them."""
    return Checkpoints(
        pathlib.Path(run.model_dir) / FOLDER,
        keep=run.keep_checkpoints,
        keep_every_steps=run.keep_every_steps,
        keep_best=run.ranks_checkpoints,
        moved_base=lambda: _moved_base(run),
    )


def _moved_base(run: Run) -> str | None:
    """Returns the checkpoint at which the base of a run's checkpoints may be found, too."""
    if run.initial_checkpoint is None:
        return None
    return find_checkpoint(pathlib.Path(run.initial_checkpoint).expanduser().absolute())


def saved_part(program: TrainProgram) -> TrainState:
    """Returns the part of the abstract state that a run saves at least."""
    run = program.run
    if run.initial_checkpoint is None or not run.model.config.adapters:
        return program.state
    names = (*program.trainable, *added_names(run.model))
    return with_params(program.state, split_by_name(program.state.params, names)[0])


def resume_latest(
    program: TrainProgram, checkpoints: StoredCheckpoints, log: Log
) -> tuple[RunStart, TrainState | None]:
    """Returns the point from which a run trains, and its latest state; None if it has none.

    If the latest checkpoint is damaged and `train.on_damage` is "previous", the run falls back to
    the latest one that is not, and those after it are moved aside. All processes must call it, and
    choose the same checkpoint.

    Raises:
        Damaged: if the latest checkpoint is damaged and `train.on_damage` is "stop", or if all
            checkpoints are damaged.
        UserError: if a checkpoint is of another run, model or optimizer, or if
            `train.initial_checkpoint` has already reached `train.total_steps`.
    """
    run = program.run
    skip = read_history(checkpoints.directory).skipped(run.stream_seed)
    damaged: list[Damaged] = []
    for step in reversed(from_first_process(checkpoints.steps())):
        log(f"restoring {checkpoints.path(step)}")
        try:
            about = _saved_about(program, checkpoints, step)
            state = _restore(program, checkpoints, step)
        except Damaged as error:
            # Without the error itself, which holds what was read.
            damaged.append(Damaged(error.path, error.reason))
            if run.on_damage == STOP:
                break
            continue
        checkpoints.saved_base = checkpoints.base(step)
        checkpoints.saved_lengths = about.get(LENGTHS)
        if damaged:
            checkpoints.move_damaged_aside(damaged, step)
        log(f"resuming at step {step} from {run.model_dir}")
        if run.initial_checkpoint is not None:
            log(
                f"train.initial_checkpoint {run.initial_checkpoint} is not used: {run.model_dir} "
                f"already holds step {step}; name another MODEL_DIR to start from it"
            )
        start = RunStart(
            step=step,
            is_new=False,
            data=about["data"],
            skip=skip,
            improvements=about.get("improvements"),
        )
        return start, state
    if damaged:
        raise Damaged(
            damaged[0].path,
            damaged[0].reason,
            remedy="bind train.on_damage = 'previous' to resume from an earlier one"
            if run.on_damage == STOP
            else "no earlier one is intact; restore a copy, or train in another MODEL_DIR",
        )
    step = 0
    if run.initial_checkpoint is not None and run.restore_optimizer:
        step = open_checkpoint(run.initial_checkpoint)[1]
    if 0 < step >= run.total_steps:
        raise UserError(
            f"train.initial_checkpoint is of step {step} already: train.total_steps must be over "
            f"it, got {run.total_steps}"
        )
    return RunStart(step=step, is_new=True, data=None, skip=skip), None


def _saved_about(
    program: TrainProgram, checkpoints: StoredCheckpoints, step: int
) -> dict[str, Any]:
    """Returns what was saved with the state of a checkpoint, which must be one of this run.

    Checked before its state is read.
    """
    run = program.run
    saved = read_together(checkpoints.path(step), lambda: checkpoints.about(step))
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
    check_same_frozen(saved, program.frozen, run.model_dir)
    _check_trainable(program, saved, run.model_dir)
    check_position(run, saved["data"])
    return saved


def new_state(program: TrainProgram, checkpoints: StoredCheckpoints, log: Log) -> TrainState:
    """Returns the first state of a run, and sets the base of what is saved to `checkpoints`.

    It has the parameters of `train.initial_checkpoint` if that is set, and the optimizer state too
    with `train.restore_optimizer`.

    Raises:
        UserError: if a checkpoint does not fit the model or the optimizer.
    """
    run = program.run
    if run.initial_checkpoint is None:
        return program.init(program.hyper)
    source, step = open_checkpoint(run.initial_checkpoint)
    about = source.about(step)
    checkpoints.saved_lengths = about.get(LENGTHS)
    _log_differences(run, about, log)
    if run.restore_optimizer:
        if "opt_state" not in source.metadata(step):
            raise UserError(
                f"train.restore_optimizer: {run.initial_checkpoint} holds no optimizer state; "
                "T5X checkpoints have one if converted with convert.optimizer_state"
            )
        _check_trainable(program, about, run.initial_checkpoint)
        log(f"starting from step and state of {run.initial_checkpoint}")
        state = _restore(program, source, step)
        names = list(by_name(state.params))
        checkpoints.saved_base = _base_of_saves(program, source, step, names, log)
        if run.base_dtype is not None:
            check_left_out(checkpoints.saved_base, run.model, state.params, run.trainable)
        return state
    log(f"starting from the parameters of {run.initial_checkpoint}")
    state = program.init(program.hyper)
    added = added_names(run.model)
    fresh = _as_in_checkpoints(program, state).params
    params, origins = restore_by_rules(source, step, fresh, run.restore_rules, added)
    for line in as_table(origins) if run.restore_rules else ():
        log(line)
    new = [name for name in added if origins[name].source is None]
    if new:
        log(f"{counted(len(new), 'parameter')} of adapters are new, the first is {new[0]}")
    params = _from_checkpoint(program, params)
    params = _with_computed_values(run, params, new)
    unchanged = [name for name, origin in origins.items() if origin == Origin(name)]
    checkpoints.saved_base = _base_of_saves(program, source, step, unchanged, log)
    if run.base_dtype is not None:
        check_left_out(checkpoints.saved_base, run.model, params, run.trainable)
    # Frees what belongs to the new parameters before that of the restored ones is made.
    state = dataclasses.replace(state, params=params, opt_state=None, average=None)
    of_params = jax.jit(
        lambda hyper, params: (
            initial_opt_state(hyper, params, program.param_axes, run.trainable),
            initial_average(hyper, params, run.trainable),
        ),
        out_shardings=jax.tree.map(
            lambda x: x.sharding, (program.state.opt_state, program.state.average)
        ),
    )
    opt_state, average = of_params(program.hyper, params)
    return dataclasses.replace(state, opt_state=opt_state, average=average)


def _base_of_saves(
    program: TrainProgram,
    source: StoredCheckpoints,
    step: int,
    unchanged: Sequence[str],
    log: Log,
) -> Base | None:
    """Returns the base of the checkpoints of a new run: for one with adapters, where it starts.

    They do not repeat the constant parameters that `source` holds under their own names.

    Args:
        unchanged: the parameters that start as those of the same names in `source`.
    """
    saved = {*program.trainable, *added_names(program.run.model)}
    # A run that starts from a moving average keeps what differs from the base's own parameters.
    paths = source.param_paths(step)
    own = {name for name in unchanged if paths.get(name) == f"params/{name}"}
    names = tuple(sorted(own - saved))
    if not program.run.model.config.adapters or not names:
        return None
    inner = source.base(step)
    if inner is not None and set(names) <= set(inner.parameters):
        base = dataclasses.replace(inner, parameters=names)
    else:
        fingerprint = source.fingerprint(step)
        base = Base(checkpoint=source.path(step), fingerprint=fingerprint, parameters=names)
    log(f"checkpoints hold what trains; the rest is of {base.checkpoint} ({base.fingerprint})")
    return base


def _with_computed_values(run: Run, params: Any, new: Collection[str]) -> Any:
    """Returns the parameters with those new ones that adapters compute from restored ones."""
    own = by_name(params)
    encode = run.task.vocabulary.encode

    def values(own: dict[str, Any]) -> dict[str, Any]:
        own = with_float_kernels(run.model, own)
        made = values_from_kernels(run.model, own) | values_from_texts(run.model, own, encode)
        return {name: made[name].astype(own[name].dtype) for name in new if name in made}

    shardings = {name: own[name].sharding for name in jax.eval_shape(values, own)}
    if not shardings:
        return params
    made = jax.jit(values, out_shardings=shardings)(own)
    return flax.traverse_util.unflatten_dict({**own, **made}, sep="/")


def _restore(program: TrainProgram, checkpoints: StoredCheckpoints, step: int) -> TrainState:
    """Returns a saved state; what it does not know of recent steps is as before the first step."""
    metadata = read_together(checkpoints.path(step), lambda: checkpoints.metadata(step))
    _check_average(program, checkpoints.path(step), metadata)
    saved = by_name(metadata.get("recent"), is_leaf=is_array)
    wanted = _as_in_checkpoints(program, program.state)
    is_whole = saved.keys() >= by_name(program.state.recent).keys()
    state = checkpoints.restore(
        step, wanted if is_whole else dataclasses.replace(wanted, recent=None)
    )
    state = dataclasses.replace(state, params=_from_checkpoint(program, state.params))
    if is_whole:
        return state
    shardings = jax.tree.map(lambda x: x.sharding, program.state.recent)
    return dataclasses.replace(state, recent=jax.jit(no_recent_steps, out_shardings=shardings)())


def _as_in_checkpoints(program: TrainProgram, state: TrainState) -> TrainState:
    """Returns a state with abstract parameters where checkpoints have those of another dtype."""
    if program.run.base_dtype is None:
        return state
    return dataclasses.replace(state, params=as_in_checkpoints(state.params))


def _from_checkpoint(program: TrainProgram, params: Any) -> Any:
    """Returns restored parameters in the form that the state has them in."""
    if program.run.base_dtype is None:
        return params
    return from_checkpoint(program.run.model, params, program.state.params)


def _check_average(program: TrainProgram, owner: str, metadata: Any) -> None:
    """Checks that a checkpoint whose state is restored has a moving average if the run has one."""
    saved = bool(by_name(metadata.get("average"), is_leaf=is_array))
    if saved != (program.state.average is not None):
        held, rule = ("holds a", "= @MovingAverage()") if saved else ("holds no", "= None")
        raise UserError(
            f"train.moving_average must be as it was, {rule}: {owner} {held} moving average; use "
            "another MODEL_DIR with train.initial_checkpoint, whose average is new"
        )


def _log_differences(run: Run, about: dict[str, Any], log: Log) -> None:
    """Logs that parameters of equal shapes had another meaning in the initial checkpoint."""
    saved_config = about.get("model", {}).get("config", {})
    model = run.model
    if not saved_config.get("adapters"):
        # New adapters are logged when their parameters are made.
        model = model.clone(config=dataclasses.replace(model.config, adapters=()))
    try:
        check_same(about, model, f"{run.initial_checkpoint}")
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
    program: TrainProgram,
    *,
    rank: float | None,
    data: dict[str, Any],
    improvements: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns what is saved with the state of a run.

    Args:
        rank: of the checkpoint among those that are kept; None if it has none.
        data: the position in the data after the saved step.
        improvements: the best score so far and since when; None for nothing.
    """
    run = program.run
    trainable = program.trainable
    is_all = len(trainable) == len(by_name(program.state.params))
    return {
        **({} if is_all else {"trainable": trainable}),
        **({"frozen": describe_frozen(program.frozen)} if program.frozen else {}),
        **({} if improvements is None else {"improvements": improvements}),
        "seed": run.seed,
        "model": describe(run.model),
        "vocabulary": run.task.vocabulary.describe(),
        "vocabulary_fingerprint": run.task.vocabulary.fingerprint,
        "rank": rank,
        "data": data,
    }

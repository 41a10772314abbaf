"""Orbax checkpoints: written while training continues, restored onto any mesh.

`checkpoints/STEP/` contains `state` (a `TrainState`) and `about` (a description of the run).
"""

import logging
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from t5lite.core.errors import Unavailable, UserError
from t5lite.core.lazy import by_name
from t5lite.training.state import TrainState

FOLDER = "checkpoints"
# Beside it: directories that are named like a checkpoint but are none.
INCOMPLETE = "incomplete_checkpoints"
LATEST = "latest"
BEST = "best"
ALL = "all"
# What names one checkpoint of a run, as in MODEL_DIR:best.
_ONE_OF_A_RUN = re.compile(rf"{LATEST}|{BEST}|\d+")

log = logging.getLogger(__name__)


class Damaged(UserError):
    """A checkpoint that cannot be read: damaged, or being deleted."""


class Checkpoints:
    """The checkpoints of one directory. Close it, or a checkpoint being written is lost.

    Args:
        directory: created unless `read_only`.
        keep: number of latest checkpoints to keep; None for all.
        keep_every_steps: checkpoints at multiples of it are never deleted.
        keep_best: whether the checkpoint with the highest `rank` is kept too.
        handlers: Orbax's handlers of the items of a checkpoint; None for the default ones.
        asynchronous: whether training continues while a checkpoint is written.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep: int | None = None,
        keep_every_steps: int | None = None,
        keep_best: bool = False,
        read_only: bool = False,
        handlers: Mapping[str, Any] | None = None,
        asynchronous: bool = True,
    ) -> None:
        kept: list[Any] = [policies.LatestN(keep)]
        if keep_every_steps is not None:
            kept.append(policies.EveryNSteps(keep_every_steps))
        if keep_best:
            kept.append(_Best(self))
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=asynchronous,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        self.directory = directory.absolute()
        if not read_only:
            _move_incomplete_aside(self.directory)
        self._ranks: dict[int, float | None] = {}
        own = {"state": ocp.PyTreeCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=dict(handlers or own)
        )

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in order."""
        steps = self._manager.all_steps()
        return sorted(step for step in steps if is_complete(self.directory / str(step)))

    def reload(self) -> list[int]:
        """Reads the directory again and returns the steps of all complete checkpoints."""
        self._manager.reload()
        return self.steps()

    def best(self) -> int | None:
        """Returns the step with the highest rank, the latest among equals; None if none has one.

        The rank of a checkpoint is the `rank` saved in its `about`.
        """
        ranks = {step: self._rank(step) for step in self.steps()}
        ranked = [(rank, step) for step, rank in ranks.items() if rank is not None]
        return max(ranked)[1] if ranked else None

    def _rank(self, step: int) -> float | None:
        if step not in self._ranks:
            self._ranks[step] = self.about(step).get("rank")
        return self._ranks[step]

    def path(self, step: int) -> str:
        """Returns the directory of one checkpoint."""
        return str(self.directory / str(step))

    def save(self, step: int, state: Any, about: Mapping[str, Any]) -> None:
        """Copies the state and writes the copy while training continues.

        Raises:
            Unavailable: if this checkpoint, or the previous one, cannot be written.
        """
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(dict(about))
        )
        self._ranks[step] = about.get("rank")
        # Checked first, because a write that fails halfway prints pages of tracebacks.
        self.check_room(state)
        with self._write_errors():
            self._manager.save(step, args=args)

    def check_room(self, state: Any) -> None:
        """Raises an Unavailable error if the disk has no room for a checkpoint of `state`."""
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if free < size:
            raise Unavailable(
                f"a checkpoint needs {size:,} bytes, but {self.directory} has {free:,} left; "
                "existing checkpoints are complete: free some space and restart to resume"
            )

    def about(self, step: int) -> dict[str, Any]:
        """Returns the description that was saved with the state."""
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        with self._read_errors(step):
            return dict(self._manager.restore(step, args=args).about)

    def saved_at(self, step: int) -> int:
        """Returns the time of saving in nanoseconds, which identifies a checkpoint of a step."""
        with self._read_errors(step):
            return int(self._manager.metadata(step).init_timestamp_nsecs or 0)

    def restore(self, step: int, state: TrainState) -> TrainState:
        """Returns the state of `step` with the shardings of the abstract `state`.

        Raises:
            UserError: if a shape differs from that of `state`; both are printed.
        """
        self._check_shapes(step, {"params": state.params, "opt_state": state.opt_state})
        return self.restore_part(step, state)

    def restore_params(self, step: int, params: Any) -> Any:
        """Returns only the parameters of `step`, with the shardings of the abstract `params`.

        Raises:
            UserError: if a shape differs from that of `params`; both are printed.
        """
        self._check_shapes(step, {"params": params})
        return self.restore_part(step, {"params": params})["params"]

    def restore_average(self, steps: Sequence[int], params: Any) -> Any:
        """Returns the mean of the parameters of some steps, with the shardings of `params`.

        At most two sets of parameters are in memory.
        """
        if len(steps) == 1:
            return self.restore_params(steps[0], params)
        add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
        total = self.restore_params(steps[0], params)
        for step in steps[1:]:
            total = add(total, self.restore_params(step, params))
        divide = jax.jit(lambda a, n: jax.tree.map(lambda x: x / n, a), donate_argnums=0)
        return divide(total, np.float32(len(steps)))

    def restore_part(self, step: int, item: Any) -> Any:
        """Returns only the arrays of `step` that the abstract `item` contains."""
        args = ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        with self._read_errors(step):
            return self._manager.restore(step, args=ocp.args.Composite(state=args)).state

    def restore_array(self, step: int, name: str) -> np.ndarray:
        """Returns one array of `step`, by its path such as "params/encoder/encoder_norm/scale"."""
        keys = tuple(name.split("/"))
        item, args = (
            flax.traverse_util.unflatten_dict({keys: leaf})
            for leaf in (0, ocp.RestoreArgs(restore_type=np.ndarray))
        )
        restore = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
        with self._read_errors(step):
            tree = self._manager.restore(step, args=ocp.args.Composite(state=restore)).state
        return np.asarray(by_name(tree)[name])

    def metadata(self, step: int) -> Any:
        """Returns the tree of `step` with shapes and dtypes instead of arrays.

        Raises:
            Damaged: if the checkpoint contains no state.
        """
        with self._read_errors(step):
            metadata = self._manager.item_metadata(step)["state"]
        if metadata is None:
            raise Damaged(f"{self.path(step)} is not a checkpoint of t5lite")
        return metadata.tree

    def _check_shapes(self, step: int, wanted: Any) -> None:
        saved = _shapes(self.metadata(step), tuple(wanted))
        for name, shape in (mine := _shapes(wanted, tuple(wanted))).items():
            if saved.get(name) != shape:
                got = f"shape {saved[name]}" if name in saved else "no such array"
                raise UserError(
                    f"checkpoint {self.path(step)} does not fit the model: "
                    f"{name} must have shape {shape}, got {got}"
                )
        if extra := sorted(saved.keys() - mine.keys()):
            raise UserError(
                f"checkpoint {self.path(step)} does not fit the model: "
                f"it contains {extra[0]} {saved[extra[0]]}, which the model does not have"
            )

    def close(self) -> None:
        """Waits until the latest checkpoint is written.

        Raises:
            Unavailable: if it cannot be written.
        """
        with self._write_errors():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextmanager
    def _read_errors(self, step: int) -> Iterator[None]:
        """Turns errors of reading into one line that names the checkpoint."""
        try:
            yield
        except (ValueError, OSError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise Damaged(
                f"checkpoint {self.path(step)} is damaged and cannot be read: {reason[:200]}; use "
                "another checkpoint"
            ) from error

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Turns errors of writing into one line; TensorStore raises ValueErrors."""
        try:
            yield
        except (ValueError, OSError) as error:
            full = "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error)
            reason = "the disk is full" if full else str(error).splitlines()[0]
            raise Unavailable(
                f"a checkpoint could not be written in {self.directory}: {reason}; earlier ones "
                "are complete; free some space and restart to resume from the latest"
            ) from error


class _Best:
    """Orbax's policy that keeps the checkpoint with the highest rank."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each of all checkpoints whether to keep it."""
        del context
        best = self._checkpoints.best()
        return [each.step == best for each in checkpoints]


def _shapes(tree: Any, roots: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of every array below `roots`, whatever the types of tree nodes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    return {
        name: tuple(leaf.shape)
        for name, leaf in named.items()
        if name.partition("/")[0] in roots and hasattr(leaf, "shape")
    }


def is_complete(path: pathlib.Path) -> bool:
    """Whether a directory has the name and the parts of a checkpoint."""
    return path.name.isdigit() and (path / "state").is_dir() and (path / "about").is_dir()


def named_steps(checkpoints: Checkpoints, which: str) -> list[int]:
    """Returns the steps that "latest", "best", "all", or steps with commas name.

    Raises:
        UserError: if there is no such checkpoint.
    """
    found = checkpoints.steps()
    if not found:
        raise UserError(
            f"{checkpoints.directory} has no checkpoint; train it first, or name another run"
        )
    if which == LATEST:
        return found[-1:]
    if which == ALL:
        return found
    if which == BEST:
        if (best := checkpoints.best()) is None:
            raise UserError(
                f"{checkpoints.directory} has no ranked checkpoint; train with "
                "train.keep_highest or train.keep_lowest"
            )
        return [best]
    for name in which.split(","):
        if int(name) not in found:
            have = ", ".join(map(str, found))
            raise UserError(
                f"{checkpoints.directory} has no checkpoint {name!r}; it has {have}, and takes "
                "latest, best and all"
            )
    return [int(name) for name in which.split(",")]


def find_checkpoint(path: pathlib.Path) -> str | None:
    """Returns the directory of a checkpoint: `path`, the latest of a MODEL_DIR, or MODEL_DIR:best.

    Raises:
        UserError: if `path` is MODEL_DIR:best or MODEL_DIR:STEP and the run has no such checkpoint.
    """
    base, _, which = str(path).rpartition(":")
    folder = pathlib.Path(base) / FOLDER
    if _ONE_OF_A_RUN.fullmatch(which) and base and folder.is_dir() and not path.exists():
        with closing(Checkpoints(folder, read_only=True)) as checkpoints:
            return checkpoints.path(*named_steps(checkpoints, which))
    if (path / FOLDER).is_dir():
        steps = [p for p in (path / FOLDER).iterdir() if is_complete(p)]
        return str(max(steps, key=lambda p: int(p.name))) if steps else None
    return str(path) if is_complete(path) else None


def _move_incomplete_aside(directory: pathlib.Path) -> None:
    """Renames each `STEP` without the parts of a checkpoint out of the way, and logs it.

    Otherwise Orbax would count it among the checkpoints to keep, and could not write that step.
    """
    if not directory.is_dir() or jax.process_index() != 0:
        return
    for path in sorted(directory.iterdir()):
        if path.name.isdigit() and not is_complete(path):
            aside = directory.with_name(INCOMPLETE)
            aside.mkdir(exist_ok=True)
            target = aside / path.name
            while target.exists():
                target = target.with_name(f"{target.name}.again")
            path.rename(target)
            log.warning("%s is not a complete checkpoint; moved to %s", path, target)


def _what_it_is(path: pathlib.Path) -> str:
    """Returns why a path is not a checkpoint, and what to do about it."""
    formats = {
        "a Hugging Face folder": (path / "config.json").is_file(),
        "a T5X checkpoint": path.suffix == ".msgpack"
        or any((path / name).is_file() for name in ("checkpoint", "state/_METADATA")),
    }
    for name, is_it in formats.items():
        if is_it:
            return f"is {name}; run t5lite convert --input={path} --output=DIR, and name DIR"
    if (path / "adapter_config.json").is_file():
        return (
            "is an adapter of PEFT; merge it with model.merge_and_unload() and save_pretrained, "
            "and convert that folder"
        )
    if path.name == FOLDER and find_checkpoint(path.parent):
        return f"is the {FOLDER} folder of a run; name {path.parent} for the latest, or one of them"
    if path.is_file():
        return "is a file; name a MODEL_DIR or a directory such as MODEL_DIR/checkpoints/1000"
    if path.is_dir():
        return (
            "holds no checkpoint; name a MODEL_DIR or a directory like MODEL_DIR/checkpoints/1000"
        )
    return "not found; name a MODEL_DIR or a directory such as MODEL_DIR/checkpoints/1000"


@contextmanager
def open_checkpoint(folder: str) -> Iterator[tuple[Checkpoints, int]]:
    """Opens one checkpoint for reading: see `find_checkpoint`.

    Raises:
        UserError: if there is none; it says what the directory holds instead.
    """
    path = pathlib.Path(folder).expanduser()
    if not (path.name.isdigit() and path.is_dir()):
        found = find_checkpoint(path)
        if found is None:
            raise UserError(f"checkpoint {folder!r} {_what_it_is(path)}")
        path = pathlib.Path(found)
    checkpoints = Checkpoints(path.parent, read_only=True)
    try:
        if int(path.name) not in checkpoints.steps():
            raise UserError(f"checkpoint {folder!r} is not complete: it cannot be restored")
        yield checkpoints, int(path.name)
    finally:
        checkpoints.close()

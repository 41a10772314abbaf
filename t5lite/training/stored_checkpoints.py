"""Checkpoints as they are read: everything is checked against its checksum first.

`checkpoints/STEP/` contains `state` (a `TrainState`), `about` (a description of the run) and
`checksums`. Checkpoints of earlier versions have no checksums.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name, name_of
from t5lite.core.records import Schema, decode_record, integer
from t5lite.training.about import decode_about
from t5lite.training.array_checksums import host_checksum
from t5lite.training.base_checkpoint import (
    Base,
    base_from,
    check_fingerprint,
    check_found,
    parameters_fingerprint,
    params_of,
    with_params,
)
from t5lite.training.checkpoint_errors import Damaged, damage_errors, read_together
from t5lite.training.checkpoint_folders import STEP_METADATA, is_complete
from t5lite.training.checksums_item import CHECKSUMS, Checksums, checksums_file, read_checksums
from t5lite.training.file_checksums import check_files
from t5lite.training.state import TrainState
from t5lite.training.state_reading import Expected, is_array, read_array, read_arrays, read_metadata
from t5lite.training.trainable import join_params, split_by_name

# What is read of Orbax's times of writing.
_SAVED_AT = Schema(required={"init_timestamp_nsecs": integer(0)})

# Which parameters of a checkpoint are read: their moving average, or their values after the step.
AVERAGE = "average"
TRAINED = "trained"

log = logging.getLogger(__name__)


class StoredCheckpoints:
    """The checkpoints of one directory.

    A checkpoint may have a base, whose parameters it does not repeat; then methods that return
    parameters return those of the base too.

    Args:
        base: names the base instead of the directory that a checkpoint records.
        moved_base: returns the same, and is called if that directory is not found.

    All methods that read a checkpoint raise `Damaged` if it is damaged. Those that return arrays
    on devices must be called by all processes, and raise it in all of them.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        base: str | None = None,
        moved_base: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.directory = directory.absolute()
        self._base = base
        self._moved_base = moved_base
        # Of checkpoints that are saved here.
        self.saved_base: Base | None = None
        self.saved_lengths: Mapping[str, Any] | None = None
        # Each is found and checked once.
        self._bases: dict[Base, tuple[StoredCheckpoints, int]] = {}
        # By step, with the time at which the checksums were written.
        self._checked: dict[int, tuple[int, Checksums]] = {}
        self._reported: set[int] = set()

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in order."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if is_complete(path))

    def best(self) -> int | None:
        """Returns the step with the highest rank, the latest among equals; None if none has one.

        The rank of a checkpoint is the `rank` saved in its `about`.
        """
        ranked = []
        for step in self.steps():
            try:
                rank = self.about(step).get("rank")
            except Damaged:
                # The run may be training, and have deleted it meanwhile.
                if step in self.steps():
                    raise
                continue
            if rank is not None:
                ranked.append((rank, step))
        return max(ranked)[1] if ranked else None

    def path(self, step: int) -> str:
        """Returns the directory of one checkpoint."""
        return str(self.directory / str(step))

    def checksums(self, step: int) -> Checksums | None:
        """Checks the files of a checkpoint, and returns its checksums.

        Returns:
            None for a checkpoint of an earlier version.
        """
        folder = self.directory / str(step)
        with damage_errors(self.path(step)):
            if not checksums_file(folder).exists():
                if CHECKSUMS in self._read_about(step):
                    raise ValueError(f"{CHECKSUMS} is missing")
                return None
            written = checksums_file(folder).stat().st_mtime_ns
            if self._checked.get(step, (None,))[0] != written:
                checksums = read_checksums(folder)
                check_files(folder, checksums.files)
                self._checked[step] = written, checksums
            return self._checked[step][1]

    def about(self, step: int) -> dict[str, Any]:
        """Returns the description that was saved with the state."""
        self.checksums(step)
        with damage_errors(self.path(step)):
            about = self._read_about(step)
        about.pop(CHECKSUMS, None)
        return about

    def _read_about(self, step: int) -> dict[str, Any]:
        return decode_about((self.directory / str(step) / "about" / "metadata").read_bytes())

    def saved_at(self, step: int) -> int:
        """Returns the time of saving in nanoseconds, which identifies a checkpoint of a step."""
        if (checksums := self.checksums(step)) is not None:
            return checksums.saved_at
        with damage_errors(self.path(step)):
            text = (self.directory / str(step) / STEP_METADATA).read_bytes()
            return int(decode_record(text, _SAVED_AT)["init_timestamp_nsecs"])

    def metadata(self, step: int) -> Any:
        """Returns the tree of `step` with shapes and dtypes instead of arrays."""
        self.checksums(step)
        tree = read_metadata(self.directory / str(step))
        if (found := self._found_base(step)) is None:
            return tree
        used = self._of_base(step, lambda: found.checkpoints.metadata(found.step))["params"]
        names = found.base.parameters
        params = join_params(split_by_name(used, names)[0], tree["params"])
        return with_params(tree, params)

    def restore(self, step: int, state: TrainState) -> TrainState:
        """Returns the state of `step` with the shardings of the abstract `state`.

        Raises:
            UserError: if a shape differs from that of `state`; both are printed.
        """
        wanted = {"params": state.params, "opt_state": state.opt_state}
        if state.average is not None:
            wanted["average"] = state.average
        self._check_shapes(step, wanted)
        restored: TrainState = self.restore_part(step, state)
        return restored

    def param_paths(self, step: int, which: str | None = None) -> dict[str, str]:
        """Returns the path of the array in `step` for each of its parameters, by name.

        Args:
            which: "average" for the moving average of those that trained, "trained" for their
                values after the step; None for the average if the checkpoint has one.

        Raises:
            UserError: for "average", if it has none.
        """
        metadata = read_together(self.path(step), lambda: self.metadata(step))
        paths = {name: f"params/{name}" for name in by_name(metadata["params"], is_leaf=is_array)}
        averaged = by_name(metadata.get("average"), is_leaf=is_array)
        if which == AVERAGE and not averaged:
            raise UserError(
                f"checkpoint {self.path(step)} has no moving average, which --parameters={which} "
                "names; train with train.moving_average"
            )
        if which != TRAINED:
            paths |= {name: f"average/{name}" for name in averaged}
        return paths

    def restore_params(self, step: int, params: Any, which: str | None = None) -> Any:
        """Returns only the parameters of `step`, with the shardings of the abstract `params`.

        Args:
            which: see `param_paths`.

        Raises:
            UserError: if a shape differs from that of `params`; both are printed.
        """
        self._check_shapes(step, {"params": params})
        paths = self.param_paths(step, which)
        item = {paths[name]: leaf for name, leaf in by_name(params).items()}
        read = by_name(self.restore_part(step, flax.traverse_util.unflatten_dict(item, sep="/")))
        return jax.tree_util.tree_map_with_path(lambda path, _: read[paths[name_of(path)]], params)

    def restore_average(self, steps: Sequence[int], params: Any, which: str | None = None) -> Any:
        """Returns the mean of the parameters of some steps, with the shardings of `params`.

        At most two sets of parameters are in memory.

        Args:
            which: see `param_paths`.
        """
        if len(steps) == 1:
            return self.restore_params(steps[0], params, which)
        add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
        total = self.restore_params(steps[0], params, which)
        for step in steps[1:]:
            total = add(total, self.restore_params(step, params, which))
        divide = jax.jit(lambda a, n: jax.tree.map(lambda x: x / n, a), donate_argnums=0)
        return divide(total, np.float32(len(steps)))

    def restore_part(self, step: int, item: Any) -> Any:
        """Returns only the arrays of `step` that the abstract `item` contains."""
        expected = read_together(self.path(step), lambda: self._expected(step))
        folder = self.directory / str(step)
        if (found := self._found_base(step)) is None:
            return read_arrays(folder, item, expected)
        theirs, own = split_by_name(params_of(item), found.base.parameters)
        part = with_params(item, own)
        restored = read_arrays(folder, part, expected) if jax.tree.leaves(part) else part
        if theirs:
            of_base = self._of_base(
                step, lambda: found.checkpoints.restore_part(found.step, {"params": theirs})
            )
            restored = with_params(restored, join_params(of_base["params"], params_of(restored)))
        return restored

    def restore_array(self, step: int, name: str, tree: Any = None) -> np.ndarray:
        """Returns one array of `step`, by its path such as "params/encoder/encoder_norm/scale".

        Every process reads all of it.

        Args:
            tree: from `metadata`; needed if the path leads through a list.
        """
        folder = self.directory / str(step)
        if (found := self._found_base(step)) is not None:
            tree = None if tree is None else read_metadata(folder)
            if name.removeprefix("params/") in found.base.parameters:
                array: np.ndarray = self._of_base(
                    step, lambda: found.checkpoints.restore_array(found.step, name)
                )
                return array
        return read_together(
            self.path(step), lambda: read_array(folder, name, self._expected(step), tree)
        )

    def base(self, step: int) -> Base | None:
        """Returns the base of a checkpoint, at the directory where it is found; None for none.

        Raises:
            UserError: if it is not found, damaged, or another one.
        """
        found = self._found_base(step)
        if found is None:
            return None
        return dataclasses.replace(found.base, checkpoint=found.checkpoints.path(found.step))

    def fingerprint(self, step: int) -> str:
        """Returns the fingerprint of the parameters of a checkpoint.

        Those of a checkpoint of an earlier version, which has no checksums, are all read.
        """
        return read_together(self.path(step), lambda: self._fingerprint(step))

    def _fingerprint(self, step: int) -> str:
        arrays = self._expected(step)
        if arrays is None:
            folder = self.directory / str(step)
            tree = {"params": read_metadata(folder)["params"]}
            names = by_name(tree, is_leaf=is_array)
            arrays = {name: host_checksum(read_array(folder, name, None)) for name in names}
        return parameters_fingerprint(arrays, base_from(self.about(step)))

    def _found_base(self, step: int) -> "_FoundBase | None":
        """Returns the base of a checkpoint, found and checked; None if it has none."""
        base = base_from(read_together(self.path(step), lambda: self.about(step)))
        if base is None:
            return None
        if base not in self._bases:
            path = pathlib.Path(self._base or base.checkpoint)
            if not is_complete(path) and (moved := self._moved_base()) is not None:
                path = pathlib.Path(moved)
            check_found(self.path(step), path, path.name.isdecimal() and is_complete(path))
            checkpoints = StoredCheckpoints(path.parent)
            its_step = int(path.name)
            fingerprint = self._of_base(step, lambda: checkpoints.fingerprint(its_step))
            check_fingerprint(self.path(step), base, str(path), fingerprint)
            self._bases[base] = checkpoints, its_step
        return _FoundBase(base, *self._bases[base])

    def _of_base(self, step: int, read: Callable[[], Any]) -> Any:
        """Returns what is read of a base; its damage is not that of the checkpoint."""
        try:
            return read()
        except Damaged as damage:
            raise UserError(
                f"{damage.path}, the base of checkpoint {self.path(step)}, is damaged: "
                f"{damage.reason}; restore a copy"
            ) from damage

    def move_damaged_aside(self, damaged: Sequence[Damaged], step: int) -> None:
        """Raises the error of the latest damaged checkpoint: reading moves nothing."""
        del step
        raise damaged[0]

    def _expected(self, step: int) -> Expected:
        """Returns the checksums of the arrays of a checkpoint; logs if it has none."""
        checksums = self.checksums(step)
        if checksums is not None:
            return checksums.arrays
        if step not in self._reported and jax.process_index() == 0:
            self._reported.add(step)
            log.warning("%s has no checksums: damage cannot be detected", self.path(step))
        return None

    def _check_shapes(self, step: int, wanted: Any) -> None:
        metadata = read_together(self.path(step), lambda: self.metadata(step))
        saved = _shapes(metadata, tuple(wanted))
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


class _FoundBase(NamedTuple):
    """A base, the checkpoints among which it is, and its step there."""

    base: Base
    checkpoints: StoredCheckpoints
    step: int


def _shapes(tree: Any, roots: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of every array below `roots`, whatever the types of tree nodes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    return {
        name: tuple(leaf.shape)
        for name, leaf in named.items()
        if name.partition("/")[0] in roots and is_array(leaf)
    }

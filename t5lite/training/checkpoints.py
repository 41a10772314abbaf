"""Checkpoints of a run, written while training continues."""

import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from t5lite.core.errors import Unavailable
from t5lite.parallel.processes import wait_for_all_processes
from t5lite.training.about import LENGTHS
from t5lite.training.array_checksums import ArrayChecksum, array_checksums
from t5lite.training.base_checkpoint import BASE
from t5lite.training.checkpoint_deleter import CheckpointDeleter
from t5lite.training.checkpoint_errors import Damaged, write_errors
from t5lite.training.checkpoint_folders import (
    DAMAGED,
    drop_bad_times,
    move_aside,
    move_incomplete_aside,
)
from t5lite.training.checksums_item import (
    CHECKSUMS,
    CHECKSUMS_VERSION,
    ChecksumsHandler,
    ChecksumsSave,
)
from t5lite.training.good_checkpoints import read_history
from t5lite.training.stored_checkpoints import StoredCheckpoints

log = logging.getLogger(__name__)


class Checkpoints(StoredCheckpoints):
    """The checkpoints of one directory, to write and to read. Close it, or one may be lost.

    Args:
        directory: created if it does not exist.
        keep: number of latest checkpoints to keep; None for all.
        keep_every_steps: checkpoints at multiples of it are never deleted.
        keep_best: whether the checkpoint with the highest `rank` is kept too.
        handler: Orbax's handler of the state; None for the default one.
        asynchronous: whether training continues while a checkpoint is written.
        moved_base: see `StoredCheckpoints`.

    `saved_base` is the base of what is saved; None saves all parameters. `saved_lengths` is saved
    with it, unless it is None.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep: int | None = None,
        keep_every_steps: int | None = None,
        keep_best: bool = False,
        handler: Any = None,
        asynchronous: bool = True,
        moved_base: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__(directory, moved_base=moved_base)
        kept: list[Any] = [policies.LatestN(keep), _Good(self.directory)]
        if keep_every_steps is not None:
            kept.append(policies.EveryNSteps(keep_every_steps))
        if keep_best:
            kept.append(_Best(self))
        self._options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=asynchronous,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        self._handler = handler
        move_incomplete_aside(self.directory)
        drop_bad_times(self.directory)
        self._manager = self._open_manager()

    def _open_manager(self) -> Any:
        # Orbax finalizes the items in this order: the checksums are of all others.
        handlers = {
            "state": self._handler or ocp.PyTreeCheckpointHandler(),
            "about": ocp.JsonCheckpointHandler(),
            CHECKSUMS: ChecksumsHandler(),
        }
        manager = ocp.CheckpointManager(
            self.directory, options=self._options, item_handlers=handlers
        )
        # NOTE: Orbax has no public way to choose how checkpoints are deleted.
        assert hasattr(manager, "_checkpoint_deleter")
        manager._checkpoint_deleter = CheckpointDeleter(self.directory)
        return manager

    def save(
        self,
        step: int,
        state: Any,
        about: Mapping[str, Any],
        arrays: Mapping[str, ArrayChecksum] | None = None,
    ) -> None:
        """Copies the state and writes the copy while training continues.

        Args:
            arrays: the checksums of the state, which may be filled while it is written; None to
                compute them.

        Raises:
            Unavailable: if this checkpoint, or the previous one, cannot be written.
        """
        if self.saved_base is not None:
            state = self.saved_base.without(state)
            about = {**about, BASE: self.saved_base.describe()}
        if self.saved_lengths:
            about = {**about, LENGTHS: self.saved_lengths}
        # Checked first, because a write that fails halfway prints pages of tracebacks.
        self.check_room(state)
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            about=ocp.args.JsonSave({**about, CHECKSUMS: CHECKSUMS_VERSION}),
            checksums=ChecksumsSave(array_checksums(state) if arrays is None else arrays),
        )
        with write_errors(str(self.directory)):
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

    def move_damaged_aside(self, damaged: Sequence[Damaged], step: int) -> None:
        """Moves damaged checkpoints out of the way, and logs it; all processes must call it.

        Args:
            step: of the checkpoint from which the run resumes.
        """
        if jax.process_index() == 0:
            for error in damaged:
                target = move_aside(pathlib.Path(error.path), DAMAGED)
                log.warning(
                    "WARNING: checkpoint %s is damaged: %s; moved to %s",
                    error.path,
                    error.reason,
                    target,
                )
            log.warning("WARNING: the run falls back to %s", self.path(step))
        # No process reads the directory before that.
        wait_for_all_processes()
        self._manager.close()
        self._manager = self._open_manager()

    def close(self) -> None:
        """Waits until the latest checkpoint is written.

        Raises:
            Unavailable: if it cannot be written.
        """
        with write_errors(str(self.directory)):
            self._manager.wait_until_finished()
            self._manager.close()


class _Good:
    """Orbax's policy that keeps the latest checkpoint that proved good, to which a run returns."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each of all checkpoints whether to keep it."""
        del context
        good = read_history(self._directory).good
        latest = max((each.step for each in checkpoints if each.step in good), default=None)
        return [each.step == latest for each in checkpoints]


class _Best:
    """Orbax's policy that keeps the checkpoint with the highest rank, and damaged ones."""

    def __init__(self, checkpoints: StoredCheckpoints) -> None:
        self._checkpoints = checkpoints
        self._ranks: dict[int, float | None] = {}
        self._damaged: set[int] = set()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each of all checkpoints whether to keep it."""
        del context
        steps = self._checkpoints.steps()
        for step in set(steps) - self._ranks.keys() - self._damaged:
            try:
                self._ranks[step] = self._checkpoints.about(step).get("rank")
            except Damaged as error:
                self._damaged.add(step)
                log.warning("%s; it is kept, without a rank", error)
        ranks = [(self._ranks.get(step), step) for step in steps]
        best = max(((rank, step) for rank, step in ranks if rank is not None), default=(0, None))[1]
        return [each.step == best or each.step in self._damaged for each in checkpoints]

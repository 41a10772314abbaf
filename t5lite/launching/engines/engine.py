"""The protocol of engines: how the trials of one launch reach the machines that run them."""

import abc
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from t5lite.core.errors import UserError
from t5lite.launching.engines.resources import Resources
from t5lite.launching.launch import Launch
from t5lite.launching.sweeps.trial_store import TrialStore

# Called with a trial's number and "started", or how it ended.
OnState = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """What `Engine.submit` did.

    Args:
        states: how each trial ended that this process watched; None if a scheduler has the trials.
        message: one line for the user; "" for none.
    """

    states: Mapping[int, str] | None = None
    message: str = ""


class Engine(abc.ABC):
    """Runs the trials of one launch, or hands them to a scheduler that does.

    `t5lite launch` calls `check` and, with `--dry_run`, `render`; then `reconcile`, `release` and
    `submit`. `status` calls `reconcile` and `active`, `cancel` calls `cancel`, `resume` does what a
    new launch does. Each call may come from another process: an engine keeps no state between them
    but what is in the folder of the launch and on the machines.

    Add one as a subclass of this class, or of `WatchingEngine` if a process of t5lite starts each
    attempt, and a row in `table.ENGINES`; or, from outside the package, by `--on=module:Class`.

    Args:
        launch: the launch.
        target: the part of `--on` after the name, such as a partition; "" for none.
        resources: an instance of `resources_type`.
    """

    # The class of `resources`; its fields are flags of `launch`.
    resources_type: ClassVar[type[Any]] = Resources
    # Whether `--vectorized` may train the trials in the process of the launcher.
    vectorizes: ClassVar[bool] = False
    # Whether trials run a copy of the code and the run files made by the first submission, so that
    # later changes of the files do not matter.
    packs_files: ClassVar[bool] = False

    def __init__(self, launch: Launch, target: str, resources: Any) -> None:
        self.launch = launch
        self.target = target
        self.resources = resources

    def check(self, numbers: Sequence[int]) -> str:
        """Validates a launch of these trials without starting anything, asking the scheduler too.

        Returns:
            A remark of the scheduler, to be printed beside `render`; "" for none.

        Raises:
            UserError: if the launch would be rejected.
        """
        del numbers
        return ""

    @abc.abstractmethod
    def render(self, numbers: Sequence[int]) -> str:
        """Returns what `submit` would run or submit: commands, a batch file or manifests."""

    @abc.abstractmethod
    def submit(self, store: TrialStore, numbers: Sequence[int], on_state: OnState) -> Submission:
        """Runs the trials to their end, or submits those that the scheduler does not have yet.

        The caller holds the lock of the launch.
        """

    def active(self) -> dict[int, str]:
        """Returns the trials that the scheduler has, and their states there."""
        return {}

    @abc.abstractmethod
    def cancel(self) -> str:
        """Asks all trials to save and stop; returns a line that says what was done."""

    def reconcile(self, store: TrialStore) -> None:
        """Records the trials that ended while no process of t5lite watched them."""
        del store

    def release(self, numbers: Sequence[int]) -> None:
        """Releases what trials that have ended still hold, such as machines."""
        del numbers

    def run_task(self, store: TrialStore, number: int, stopping: threading.Event) -> str:
        """Runs one trial inside a job of the scheduler; `t5lite launch trial` calls it.

        Returns:
            How the trial ended, as `run_trial` does.

        Raises:
            UserError: if jobs of this engine do not call `t5lite launch trial`.
        """
        del store, number, stopping
        raise UserError(f"--on={self.launch.engine} has no jobs that run `t5lite launch trial`")

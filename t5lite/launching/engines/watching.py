"""Engines whose attempts are started and watched by a process of t5lite."""

import abc
import pathlib
import shlex
import threading
from collections.abc import Sequence
from typing import IO, ClassVar

from t5lite.launching.engines.engine import Engine, OnState, Submission
from t5lite.launching.launcher_lock import signal_launcher
from t5lite.launching.processes import ProcessGroup
from t5lite.launching.runner import run_trials
from t5lite.launching.stopping import until_stopped
from t5lite.launching.sweeps.trial_store import TrialStore
from t5lite.launching.trial import run_trial


class WatchingEngine(Engine):
    """An engine that implements `start`; by default the launcher watches all trials to their end.

    An engine with a scheduler overrides `submit`, `active` and `cancel`, lets its jobs run
    `t5lite launch trial NAME --trial=N`, and inherits the watching inside a job.
    """

    # Whether a trial that was preempted or crashed restarts at once, in the same process.
    restarts: ClassVar[bool] = True
    # Whether `start` resumes watching an attempt that an earlier launcher left running.
    attaches: ClassVar[bool] = False

    @abc.abstractmethod
    def start(self, number: int, arguments: Sequence[str], log: IO[bytes]) -> ProcessGroup:
        """Starts an attempt, `t5lite ARGUMENTS`, with its output appended to a file."""

    def render(self, numbers: Sequence[int]) -> str:
        """Returns the commands of the trials."""
        settings = self.launch.planned or [{}]
        return "\n".join(
            shlex.join(["t5lite", *self.launch.arguments(number, settings[number])])
            if number < len(settings)
            else f"t5lite {self.launch.command} ... # trial {number} depends on earlier trials"
            for number in numbers
        )

    def submit(self, store: TrialStore, numbers: Sequence[int], on_state: OnState) -> Submission:
        """Runs the trials to their end, or until SIGTERM or Ctrl-C asks to save and stop."""
        return Submission(
            states=until_stopped(
                lambda stopping: run_trials(self.launch, store, numbers, self, on_state, stopping)
            )
        )

    def cancel(self) -> str:
        """Asks the launcher, if it runs, to save and stop."""
        asked = signal_launcher(pathlib.Path(self.launch.folder))
        return "asked to save and stop" if asked else "is not running"

    def run_task(self, store: TrialStore, number: int, stopping: threading.Event) -> str:
        """Runs one trial inside a job and watches it to its end."""
        return run_trial(self.launch, store, number, self, stopping)

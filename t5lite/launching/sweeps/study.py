"""A sweep's trials, kept by Optuna in a journal file of the sweep's folder, the only store.

Trial K is the K-th of the sweep whoever runs it: it is taken up again, not replaced, when a process
that ran it was killed.
"""

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from t5lite.core.errors import UserError
from t5lite.core.locks import wait_for_lock
from t5lite.launching.sweeps.space import Choice, Range, Space, grid

JOURNAL, NAME = "study.journal", "sweep"
METHODS = ("grid", "list", "random", "quasi", "tpe")
PRUNERS = ("asha", "hyperband")
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """The trials of one sweep; safe to use in several threads and processes.

    Args:
        folder: the sweep's.
        space: what is varied.
        maximize: whether a higher value is better.
        pruner: stops trials that do badly; None for no such thing.
        seed: of what is drawn.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        space: Space,
        *,
        maximize: bool = False,
        pruner: optuna.pruners.BasePruner | None = None,
        seed: int = 0,
    ) -> None:
        path = (folder / JOURNAL).absolute()
        self._lock = _Lock(path)
        self._distributions = {name: _distribution(values) for name, values in space.items()}
        self._seed, self._thread = seed, threading.RLock()
        self._storage: BaseStorage = JournalStorage(JournalFileBackend(str(path), self._lock))
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=NAME,
            direction="maximize" if maximize else "minimize",
            # Several at once: those that run count as bad, so that not all try the same.
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )

    def plan(self, params: Sequence[dict[str, Any]]) -> None:
        """Makes sure that the first trials are these; call it again after it was cut off."""
        with self._thread, self._planning():
            for row in params[len(self.trials()) :]:
                self._study.enqueue_trial(row)

    def trials(self) -> list[FrozenTrial]:
        """Returns all trials there are, by number."""
        with self._thread:
            return self._study.get_trials(deepcopy=False)

    def take(self, number: int) -> Trial | None:
        """Returns a trial to run, one that was begun too; None where it has ended."""
        with self._thread, self._planning():
            while (count := len(self.trials())) <= number:
                # Seeded for each trial: every process would draw the same ones in turn.
                own = int(np.random.SeedSequence([self._seed, count]).generate_state(1)[0])
                # Several at once: those that run count as bad, so that not all try the same.
                self._study.sampler = optuna.samplers.TPESampler(seed=own, constant_liar=True)
                self._study.ask(self._distributions)
            frozen = self.trials()[number]
            if frozen.state.is_finished():
                return None
            if frozen.state == TrialState.WAITING:
                self._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
            trial = Trial(self._study, frozen._trial_id)
            # What was planned becomes the trial's own at its first suggestion.
            for name, distribution in self._distributions.items():
                trial._suggest(name, distribution)
            return trial

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Tells a value on the way, and returns whether the trial is to be pruned.

        A step that was told before, by an attempt that was killed, says nothing new.
        """
        with self._thread:
            told = self.trials()[trial.number].intermediate_values
            if step not in told:
                trial.report(value, step)
            return trial.should_prune()

    def tell(self, number: int, state: str, value: float | None = None) -> None:
        """Ends a trial: "complete" with its value, "pruned" or "failed"."""
        states = {
            "complete": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }
        with self._thread:
            self._study.tell(number, value, state=states[state], skip_if_finished=True)

    def importance(self) -> dict[str, float]:
        """Returns how much each binding matters for being among the best, in all 1 (PED-ANOVA).

        None are told of fewer than four complete trials, or where nothing differs.
        """
        done = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        if len(done) < 4 or len({t.value for t in done}) < 2 or not self._distributions:
            return {}
        shares = optuna.importance.get_param_importances(self._study)
        return {name: float(share) for name, share in shares.items()}

    def best(self) -> FrozenTrial | None:
        """Returns the best complete trial; None where there is none."""
        done = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        sign = -1 if self._study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        return min(done, key=lambda t: (sign * (t.value or 0.0), t.number)) if done else None

    @contextlib.contextmanager
    def _planning(self) -> Iterator[None]:
        """One process at a time decides on trials."""
        with self._lock.path.with_suffix(".plan.lock").open("w") as file:
            wait_for_lock(file)
            yield


def planned(
    method: str, space: Space, *, trials: int | None, listed: Sequence[dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Returns the parameters of all trials, or none for a method that learns from those before.

    Raises:
        UserError: where the number of trials is missing or does not fit.
    """
    if method == "list":
        return list(listed)
    if method == "grid":
        rows = grid(space)
        if trials not in (None, len(rows)):
            raise UserError(f"--trials of this grid is {len(rows)}, got {trials}")
        return rows
    if trials is None:
        raise UserError(f"--method={method} needs --trials, how many are drawn")
    if method == "tpe":
        return []
    if method == "random":
        points = np.random.default_rng(seed).random((trials, len(space)))
    else:
        # Late: it takes as long to import as all that looking at a launch does.
        import scipy.stats

        # As many as make the sequence even are drawn, and the first of them taken.
        sequence = scipy.stats.qmc.Sobol(len(space), rng=seed)
        points = sequence.random_base2(max(trials - 1, 1).bit_length())[:trials]
    return [
        {name: values.at(float(x)) for (name, values), x in zip(space.items(), row, strict=True)}
        for row in points
    ]


def pruner_of(name: str | None, *, first_step: int, last_step: int) -> Any:
    """Returns the pruner of that name; none before `first_step`."""
    if name is None:
        return None
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=first_step, reduction_factor=3, bootstrap_count=0
        )
    return optuna.pruners.HyperbandPruner(
        min_resource=first_step, max_resource=last_step, reduction_factor=3
    )


def _distribution(values: Range | Choice) -> BaseDistribution:
    if isinstance(values, Choice):
        return CategoricalDistribution(values.values)
    if values.is_whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(float(values.low), float(values.high), log=values.log)


class _Lock(JournalFileOpenLock):
    """A lock that goes with its process: none is ever stale."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._held = threading.local()

    def acquire(self) -> bool:
        """Waits for it, and takes away a line that was cut short, by a kill or a full disk."""
        self._held.file = self.path.with_suffix(".lock").open("w")
        wait_for_lock(self._held.file)
        if self.path.exists():
            with self.path.open("r+b") as journal:
                size = journal.seek(0, os.SEEK_END)
                end = size
                while end and (journal.seek(end - 1), journal.read(1))[1] != b"\n":
                    end -= 1
                if end < size:
                    journal.truncate(end)
        return True

    def release(self) -> None:
        """Lets the next one go on."""
        self._held.file.close()

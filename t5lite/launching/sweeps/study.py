"""A sweep's trials, kept by Optuna in a journal file of the sweep's folder, the only store.

Trial K is the K-th trial of the sweep, whichever process runs it. A trial whose process was killed
is resumed, not replaced.
"""

import contextlib
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from t5lite.core.errors import UserError
from t5lite.core.locks import wait_for_lock
from t5lite.launching.sweeps.journal import STUDY_NAME, Journal, open_journal
from t5lite.launching.sweeps.settings import setting_key, unseen_settings
from t5lite.launching.sweeps.space import Range, Space, ValueList

JOURNAL = "study.journal"
TRIAL_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
# Samples of TPE that may repeat an earlier setting before an unseen one is enumerated.
MAX_SAMPLES = 20
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """The trials of one sweep; safe to use in several threads and processes.

    Args:
        folder: the folder of the sweep.
        space: the search space.
        maximize: whether a higher value is better.
        pruner: stops bad trials early; None to run all trials to their end.
        seed: seed of the samples.
        allow_repeats: whether a sampled setting may repeat an earlier one.

    Raises:
        UserError: if the journal is damaged, or of another search space.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        space: Space,
        *,
        maximize: bool = False,
        pruner: optuna.pruners.BasePruner | None = None,
        seed: int = 0,
        allow_repeats: bool = False,
    ) -> None:
        self._journal = Journal((folder / JOURNAL).absolute())
        self._space = space
        self._distributions = {name: _distribution(values) for name, values in space.items()}
        self._seed = seed
        self._allow_repeats = allow_repeats
        self._thread = threading.RLock()
        self._taken: dict[int, Trial] = {}
        self._storage: BaseStorage = open_journal(self._journal)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=STUDY_NAME,
            direction="maximize" if maximize else "minimize",
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        for trial in self.trials():
            self._check_setting(trial)

    def _check_setting(self, trial: FrozenTrial) -> None:
        """Raises a UserError unless the setting of a trial is one of the search space."""
        is_ours = trial.distributions.items() <= self._distributions.items()
        # A trial whose process was killed as it started has both, the first one in part.
        settings = (trial.params, trial.system_attrs.get("fixed_params", {}))
        if not is_ours or not all(self._contains(setting) for setting in settings):
            raise UserError(
                f"{self._journal.path}: the setting of trial {trial.number} must be one of the "
                "search space; restore the file, or launch under another --name"
            )

    def plan(self, settings: Sequence[dict[str, Any]]) -> None:
        """Makes sure that the first trials have these settings, also after an interruption."""
        with self._thread, self._planning():
            for setting in settings[len(self.trials()) :]:
                self._study.enqueue_trial(setting)

    def trials(self) -> list[FrozenTrial]:
        """Returns all trials so far, by number."""
        with self._thread:
            return self._study.get_trials(deepcopy=False)

    def unfinished(self) -> list[int]:
        """Returns the numbers of the trials that have not ended."""
        return [trial.number for trial in self.trials() if not trial.state.is_finished()]

    def take(self, number: int) -> Trial | None:
        """Marks a trial as running and returns it; None if it has ended.

        Raises:
            UserError: if a setting has to be sampled and the search space is exhausted.
        """
        with self._thread, self._planning():
            while (count := len(self.trials())) <= number:
                self._study.enqueue_trial(self._sample(count))
            frozen = self.trials()[number]
            if frozen.state.is_finished():
                return None
            if frozen.state == TrialState.WAITING:
                self._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
            trial = Trial(self._study, frozen._trial_id)
            # A planned value becomes the trial's own at its first suggestion.
            for name, distribution in self._distributions.items():
                trial._suggest(name, distribution)
            self._taken[number] = trial
            return trial

    def report(self, number: int, step: int, value: float) -> bool:
        """Records an intermediate value, and returns whether to prune the trial.

        A step that an earlier attempt reported keeps its first value.
        """
        with self._thread:
            trial = self._taken[number]
            if step not in self.trials()[number].intermediate_values:
                trial.report(value, step)
            return trial.should_prune()

    def tell(self, number: int, state: str, value: float | None = None) -> None:
        """Records the end of a trial: "complete" with its value, "pruned" or "failed"."""
        with self._thread:
            self._study.tell(number, value, state=TRIAL_STATES[state], skip_if_finished=True)

    def value_of(self, number: int) -> float | None:
        """Returns the value of a complete trial; None if the trial is not complete."""
        trial = self.trials()[number]
        if trial.state != TrialState.COMPLETE or trial.value is None:
            return None
        # A whole number in the journal.
        return float(trial.value)

    def outcome_of(self, number: int) -> str:
        """Returns how an ended trial ended: "complete", "pruned" or "failed"."""
        state = self.trials()[number].state
        return next(name for name, each in TRIAL_STATES.items() if each == state)

    def best(self) -> FrozenTrial | None:
        """Returns the best complete trial; None if no trial is complete."""
        done = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        sign = -1 if self._study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        return min(done, key=lambda t: (sign * (t.value or 0.0), t.number)) if done else None

    def _contains(self, setting: Any) -> bool:
        return (
            isinstance(setting, Mapping)
            and setting.keys() <= self._space.keys()
            and all(self._space[name].contains(value) for name, value in setting.items())
        )

    def _sample(self, number: int) -> dict[str, Any]:
        """Returns the setting that TPE chooses for the next trial, one that no trial has yet."""
        trials = self.trials()
        seen = set() if self._allow_repeats else {setting_key(setting_of(t)) for t in trials}
        for attempt in range(MAX_SAMPLES):
            # Each trial has its own seed: with one seed every process would sample the same values.
            entropy = [self._seed, number, *([attempt] if attempt else [])]
            own = int(np.random.SeedSequence(entropy).generate_state(1)[0])
            study = optuna.create_study(
                direction=self._study.direction,
                # Running trials count as bad, so that trials that run together differ.
                sampler=optuna.samplers.TPESampler(seed=own, constant_liar=True),
            )
            study.add_trials([t for t in trials if t.state != TrialState.WAITING])
            setting = study.ask(self._distributions).params
            if setting_key(setting) not in seen:
                return setting
        # TPE repeats itself when few settings of a finite space are left.
        for setting in unseen_settings(self._space, seen):
            return setting
        raise UserError(f"the search space is exhausted: it has {len(seen)} settings")

    @contextlib.contextmanager
    def _planning(self) -> Iterator[None]:
        """Lets one process at a time decide on trials."""
        with self._journal.path.with_suffix(".plan.lock").open("w") as file:
            wait_for_lock(file)
            yield


def setting_of(trial: FrozenTrial) -> Mapping[str, Any]:
    """Returns the parameters of a trial, also of one that is planned and not yet running."""
    return trial.params or trial.system_attrs.get("fixed_params", {})


def pruner_of(name: str | None, *, first_step: int, last_step: int) -> Any:
    """Returns the pruner of a name, which prunes no trial before `first_step`."""
    if name is None:
        return None
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=first_step, reduction_factor=3, bootstrap_count=0
        )
    return optuna.pruners.HyperbandPruner(
        min_resource=first_step, max_resource=last_step, reduction_factor=3
    )


def _distribution(values: Range | ValueList) -> BaseDistribution:
    if isinstance(values, ValueList):
        return CategoricalDistribution(values.values)
    if values.is_integer:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(float(values.low), float(values.high), log=values.log)

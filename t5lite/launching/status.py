"""The state of every trial of a launch."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from optuna.trial import TrialState

from t5lite.core.errors import UserError
from t5lite.core.run_directory import is_locked, outcomes, read_metrics
from t5lite.launching.engines.engine import Engine
from t5lite.launching.launch import Launch
from t5lite.launching.sweeps.space import Scalar
from t5lite.launching.sweeps.study import Study, setting_of

FINAL_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialStatus:
    """One trial.

    Args:
        trial: its number.
        state: "complete", "pruned", "failed", "running", "interrupted" if it resumes at the next
            start, "waiting", or the state in the engine's scheduler.
        params: what the sweep varies.
        step: the latest step with a record.
        value: the objective; the latest value if the trial is not complete.
        preempted: attempts that were preempted.
        failed: attempts that failed or were killed.
        rejected: attempts that ended with a mistake of the user.
    """

    trial: int
    state: str
    params: dict[str, Scalar]
    step: int
    value: float | None
    preempted: int
    failed: int
    rejected: int


def trial_statuses(launch: Launch, study: Study, engine: Engine) -> list[TrialStatus]:
    """Returns all trials, those that have not started included, by number."""
    queued = engine.active()
    trials = study.trials()
    planned = launch.planned
    found = []
    for number in range(max(launch.num_trials, len(trials))):
        model_dir = launch.model_dir(number)
        trial = trials[number] if number < len(trials) else None
        state = FINAL_STATES.get(trial.state) if trial else "waiting"
        if state is None and trial is not None:
            waiting = trial.state == TrialState.WAITING
            idle = queued.get(number, "waiting" if waiting else "interrupted")
            state = "running" if is_locked(model_dir) else idle
        params = dict(setting_of(trial)) if trial else {}
        if not params and number < len(planned):
            params = planned[number]
        counts = outcomes(model_dir)
        try:
            scores = launch.scores(number)
        except UserError:
            scores = []
        # A running attempt has no outcome yet and counts as killed.
        killed = max(counts["killed"] - (state == "running"), 0)
        found.append(
            TrialStatus(
                trial=number,
                state=str(state),
                params=params,
                step=latest_step(launch, number),
                value=scores[-1][1] if scores else None,
                preempted=counts["preempted"],
                failed=counts["failed"] + counts["stalled"] + killed,
                rejected=counts["rejected"],
            )
        )
    return found


def latest_step(launch: Launch, number: int) -> int:
    """Returns the latest step that a trial has recorded; 0 before the first."""
    return max((line["step"] for line in read_metrics(launch.model_dir(number))), default=0)


def status_document(launch: Launch, study: Study, trials: Sequence[TrialStatus]) -> str:
    """Returns the trials as one JSON document."""
    best = study.best()
    document: dict[str, Any] = {
        "name": launch.name,
        "objective": launch.objective,
        "maximize": launch.maximize,
        "best": None if best is None else best.number,
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    return json.dumps(document, indent=1)

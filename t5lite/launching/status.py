"""What has become of the trials of a launch."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from optuna.trial import TrialState

from t5lite.core.errors import UserError
from t5lite.core.run_directory import is_locked, outcomes, read_metrics
from t5lite.launching.engines.engine import module_of
from t5lite.launching.launch import Launch
from t5lite.launching.sweeps.space import Scalar
from t5lite.launching.sweeps.study import Study

ENDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One trial.

    Args:
        state: "complete", "pruned", "failed", "running", "interrupted" (it goes on at the next
            start), "waiting", or as the engine has it.
        value: of the objective; the latest where it is not complete.
        attempts: counts by outcome.
    """

    trial: int
    state: str
    params: dict[str, Scalar]
    step: int
    value: float | None
    preempted: int
    failed: int


def rows(launch: Launch, study: Study) -> list[Row]:
    """Returns all trials there are or are to be, by number."""
    queued = module_of(launch).active(launch)
    trials, planned, found = study.trials(), launch.rows, []
    for number in range(max(launch.num_trials, len(trials))):
        model_dir = launch.model_dir(number)
        trial = trials[number] if number < len(trials) else None
        state = ENDS.get(trial.state) if trial else "waiting"
        if state is None and trial is not None:
            waiting = trial.state == TrialState.WAITING
            idle = queued.get(number, "waiting" if waiting else "interrupted")
            state = "running" if is_locked(model_dir) else idle
        params = dict(trial.params) if trial else {}
        counts, steps = outcomes(model_dir), [line["step"] for line in read_metrics(model_dir)]
        try:
            scores = launch.scores(number)
        except UserError:
            scores = []
        # One that is going on is not killed.
        killed = counts["killed"] - (state == "running")
        found.append(
            Row(
                number,
                str(state),
                params or (planned[number] if number < len(planned) else {}),
                max(steps, default=0),
                scores[-1][1] if scores else None,
                counts["preempted"],
                counts["failed"] + max(killed, 0),
            )
        )
    return found


def as_json(launch: Launch, study: Study, rows: Sequence[Row]) -> str:
    """Returns one JSON document."""
    best = study.best()
    document: dict[str, Any] = {
        "name": launch.name,
        "objective": launch.objective,
        "maximize": launch.maximize,
        "best": None if best is None else best.number,
        "trials": [dataclasses.asdict(row) for row in rows],
    }
    return json.dumps(document, indent=1)

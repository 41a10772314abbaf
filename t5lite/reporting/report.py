"""Runs and launches as a report compares them, read from their folders."""

import dataclasses
import math
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.run_directory import (
    ALL_STEPS,
    METRICS,
    RESULT,
    curve,
    is_locked,
    outcomes,
    read_attempts,
    read_metrics,
    read_result,
)
from t5lite.launching.launch import Launch
from t5lite.launching.launch_files import SPEC, read_launch
from t5lite.launching.open_study import open_study
from t5lite.launching.sweeps.importance import Importance, importance_of
from t5lite.launching.sweeps.settings import is_seed, without_seeds
from t5lite.launching.sweeps.space import Range, Scalar, parse_space
from t5lite.reporting.goodput import Goodput, read_goodput


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run as a report shows it.

    Args:
        name: the number of a trial, or the folder of a run.
        params: what the sweep varies, by gin binding.
        curve: steps and values of the objective.
        step: the latest step with a record.
        attempts: number of attempts by outcome.
        tokens_per_second: median over the records of training.
        hours: time of all attempts.
        goodput: for what that time was spent; None if no attempt recorded it.
        command: the command that trains the run again.
        is_whole: whether it has ended by itself.
        ended: why it did; None if it has not.
    """

    name: str
    params: Mapping[str, Scalar]
    curve: Sequence[tuple[int, float]]
    step: int
    attempts: Mapping[str, int]
    tokens_per_second: float | None
    hours: float
    goodput: Goodput | None
    command: str
    is_whole: bool = True
    ended: str | None = None

    @property
    def value(self) -> float | None:
        """The latest value of the objective."""
        return self.curve[-1][1] if self.curve else None

    @property
    def kind(self) -> tuple[tuple[str, Scalar], ...]:
        """The setting without its seeds: what runs of one kind have in common."""
        return tuple(sorted(without_seeds(self.params).items()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Several runs, compared by one metric.

    Args:
        runs: the runs.
        objective: the metric.
        maximize: whether a higher value is better.
        logarithmic: names whose values come from a log range.
    """

    runs: Sequence[ReportedRun]
    objective: str
    maximize: bool
    logarithmic: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """All bindings that vary."""
        return list(dict.fromkeys(name for run in self.runs for name in run.params))

    @property
    def parameters(self) -> list[str]:
        """The bindings that vary, without seeds, which are noise."""
        return [name for name in self.names if not is_seed(name)]

    @property
    def direction(self) -> str:
        """Which end of the objective is good."""
        return "higher is better" if self.maximize else "lower is better"

    @property
    def best(self) -> ReportedRun | None:
        """The run with the best value among those that have done all their steps."""
        first = self.ordered[:1]
        return first[0] if first and first[0].is_whole and first[0].value is not None else None

    @property
    def ordered(self) -> list[ReportedRun]:
        """The runs from best to worst, unfinished runs last."""
        sign = -1 if self.maximize else 1
        return sorted(
            self.runs,
            key=lambda r: (
                not r.is_whole or r.value is None,
                math.inf if r.value is None else sign * r.value,
            ),
        )

    @property
    def importance(self) -> Importance:
        """How much each parameter matters, from the runs that have done all their steps."""
        whole = [run for run in self.runs if run.is_whole]
        values = [(dict(run.params), run.value) for run in whole if run.value is not None]
        return importance_of([(p, v) for p, v in values if p], maximize=self.maximize)


def collect_runs(
    folders: Sequence[str], *, objective: str | None = None, maximize: bool | None = None
) -> Report:
    """Reads runs and launches, unfinished ones as far as they are.

    Args:
        objective: a metric of evaluations, or SPLIT/NAME; None for that of the launches, or
            `cross_entropy_nats_per_token` without one.
        maximize: whether a higher value is better; None for the direction of the launches.

    Raises:
        UserError: if a folder holds neither, launches rank by different metrics and `objective` is
            None, or no run has the metric.
    """
    runs: list[ReportedRun] = []
    logarithmic: set[str] = set()
    launches = {f: read_launch(pathlib.Path(f)) for f in folders if _is_launch(f)}
    first = next(iter(launches.values()), None)
    if objective is None:
        _check_same_objective(launches)
    name = objective or (first.objective if first else "cross_entropy_nats_per_token")
    higher = maximize if maximize is not None else first is not None and first.maximize
    for text in folders:
        folder = pathlib.Path(text)
        if text in launches:
            prefix = f"{launches[text].name}/" if len(folders) > 1 else ""
            runs += _trials(launches[text], name, prefix)
            space = parse_space(launches[text].space).items()
            logarithmic |= {key for key, v in space if isinstance(v, Range) and v.log}
        elif (folder / METRICS).exists():
            starts = [m for m in read_attempts(folder) if "command" in m]
            command = shlex.join(starts[-1]["command"]) if starts else ""
            runs.append(_run(str(folder), folder, {}, name, command))
        else:
            raise UserError(
                f"{text} is neither a run nor a launch: it has no {METRICS} and no {SPEC}"
            )
    if runs and not any(run.curve for run in runs):
        keys = {key for f in folders for m in _all_metrics(pathlib.Path(f)) for key in m}
        known = ", ".join(sorted(keys - {"step", "split"})) or "none yet"
        raise UserError(f"no run has recorded {name!r}; recorded metrics: {known}")
    return Report(runs=runs, objective=name, maximize=higher, logarithmic=frozenset(logarithmic))


def _check_same_objective(launches: Mapping[str, Launch]) -> None:
    ranked_by = [
        f"the {'highest' if each.maximize else 'lowest'} {each.objective} ({folder})"
        for folder, each in launches.items()
    ]
    if len({(each.objective, each.maximize) for each in launches.values()}) > 1:
        raise UserError(
            "report compares runs by one metric, got launches that rank by "
            f"{', '.join(ranked_by)}; name it with --minimize or --maximize"
        )


def _is_launch(folder: str) -> bool:
    return (pathlib.Path(folder) / SPEC).exists()


def _all_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
    return [m for path in folder.rglob(METRICS) for m in read_metrics(path.parent)]


def _trials(launch: Launch, objective: str, prefix: str) -> list[ReportedRun]:
    found = []
    for trial in open_study(launch).trials():
        params = dict(trial.params)
        command = shlex.join(["t5lite", *launch.arguments(trial.number, params)])
        model_dir = launch.model_dir(trial.number)
        found.append(_run(f"{prefix}{trial.number}", model_dir, params, objective, command))
    return found


def _run(
    name: str, model_dir: pathlib.Path, params: Mapping[str, Scalar], objective: str, command: str
) -> ReportedRun:
    metrics = read_metrics(model_dir)
    trained = [m for m in metrics if m["split"] == "train"]
    lines = read_attempts(model_dir)
    spent = sum(m.get("seconds", 0.0) for m in lines if "outcome" in m)
    goodput = read_goodput(model_dir)
    ended = outcomes(model_dir)
    if is_locked(model_dir) and lines and "began" in lines[-1]:
        # A running attempt has no outcome yet and counts as killed.
        ended["killed"] -= 1
    is_whole = (model_dir / RESULT).exists()
    recorded = (m.get("tokens_per_second") for m in trained)
    speeds = sorted(speed for speed in recorded if speed is not None)
    return ReportedRun(
        name=name,
        params=params,
        curve=curve(metrics, objective),
        step=max((m["step"] for m in metrics), default=0),
        attempts=ended,
        tokens_per_second=speeds[len(speeds) // 2] if speeds else None,
        hours=(spent if goodput is None else goodput.total) / 3600,
        goodput=goodput,
        command=command,
        is_whole=is_whole,
        # Earlier versions recorded no reason.
        ended=read_result(model_dir).get("ended", ALL_STEPS) if is_whole else None,
    )

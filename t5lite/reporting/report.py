"""Tables and pages over runs: what they came to, what was varied, and what that did."""

import csv
import dataclasses
import datetime
import io
import math
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.run_directory import (
    ATTEMPTS,
    METRICS,
    RESULT,
    curve,
    is_locked,
    open_attempt,
    outcomes,
    read_metrics,
    read_records,
)
from t5lite.launching.launch import SPEC, read
from t5lite.launching.sweeps.space import Range, Scalar, parse_space

# A binding or macro of this name makes runs of one kind, whose curves are drawn as a band.
SEEDS = ("SEED", "train.seed", "train.data_seed")


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """A run as a report shows it.

    Args:
        params: what was varied, by gin binding.
        curve: steps and values of the objective.
        attempts: counts by outcome.
        tokens_per_second: the median of what training told.
        goodput: the share of the time of all attempts that went into steps which count; None where
            an attempt did not say how long it took.
        command: that trains it again.
        is_whole: whether all its steps are done.
    """

    name: str
    params: Mapping[str, Scalar]
    curve: Sequence[tuple[int, float]]
    step: int
    attempts: Mapping[str, int]
    tokens_per_second: float | None
    hours: float
    goodput: float | None
    command: str
    is_whole: bool = True

    @property
    def value(self) -> float | None:
        """The objective's latest value."""
        return self.curve[-1][1] if self.curve else None

    @property
    def kind(self) -> tuple[tuple[str, Scalar], ...]:
        """What was varied but the seed."""
        return tuple((k, v) for k, v in sorted(self.params.items()) if k not in SEEDS)


@dataclasses.dataclass(frozen=True)
class Report:
    """Several runs, compared by one metric.

    Args:
        logarithmic: what was drawn from a logarithmic range.
    """

    runs: Sequence[ReportedRun]
    objective: str
    maximize: bool
    logarithmic: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """All that was varied."""
        return list(dict.fromkeys(name for run in self.runs for name in run.params))

    @property
    def best(self) -> ReportedRun | None:
        """The run with the best value of those that have done all their steps."""
        first = self.ordered[:1]
        return first[0] if first and first[0].is_whole and first[0].value is not None else None

    @property
    def ordered(self) -> list[ReportedRun]:
        """The runs from best to worst, behind those that are whole the others."""
        sign = -1 if self.maximize else 1
        return sorted(
            self.runs,
            key=lambda r: (
                not r.is_whole or r.value is None,
                math.inf if r.value is None else sign * r.value,
            ),
        )


def collect(folders: Sequence[str], *, objective: str | None, maximize: bool | None) -> Report:
    """Reads runs and launches; what is going on, too, as far as it is.

    Args:
        objective: a metric of evaluations, or SPLIT/NAME; None for the launch's own.

    Raises:
        UserError: where a folder holds neither, or no run has the metric.
    """
    runs: list[ReportedRun] = []
    logarithmic: set[str] = set()
    launches = [read(pathlib.Path(f)) for f in folders if (pathlib.Path(f) / SPEC).exists()]
    name = objective or next((x.objective for x in launches), "cross_entropy_nats_per_token")
    higher = maximize if maximize is not None else any(x.maximize for x in launches)
    for text in folders:
        folder = pathlib.Path(text)
        if (folder / SPEC).exists():
            launch = read(folder)
            space = parse_space(launch.space).items()
            logarithmic |= {key for key, v in space if isinstance(v, Range) and v.log}
            for trial in launch.study().trials():
                model_dir = launch.model_dir(trial.number)
                params = dict(trial.params)
                command = shlex.join(["t5lite", *launch.arguments(trial.number, params)])
                many = f"{launch.name}/" if len(folders) > 1 else ""
                runs.append(_run(f"{many}{trial.number}", model_dir, params, name, command))
        elif (folder / METRICS).exists():
            starts = [m for m in read_records(folder / ATTEMPTS) if "command" in m]
            command = shlex.join(starts[-1]["command"]) if starts else ""
            runs.append(_run(str(folder), folder, {}, name, command))
        else:
            raise UserError(f"{text} is no run and no launch: it has no {METRICS} and no {SPEC}")
    if runs and not any(run.curve for run in runs):
        told = sorted({key for f in folders for m in _all_metrics(pathlib.Path(f)) for key in m})
        known = ", ".join(key for key in told if key not in ("step", "split")) or "none yet"
        raise UserError(f"no run has told {name!r}; metrics that are there: {known}")
    return Report(runs, name, higher, frozenset(logarithmic))


def _all_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
    return [m for path in folder.rglob(METRICS) for m in read_metrics(path.parent)]


def _run(
    name: str, model_dir: pathlib.Path, params: Mapping[str, Scalar], objective: str, command: str
) -> ReportedRun:
    metrics = read_metrics(model_dir)
    trained = [m for m in metrics if m["split"] == "train"]
    steps = [m["step"] for m in trained]
    # A line tells of all steps since the one before it.
    counts = [b - a for a, b in zip([0, *steps], steps, strict=False)]
    useful = math.fsum(n * m["step_seconds"] for n, m in zip(counts, trained, strict=True))
    lines = read_records(model_dir / ATTEMPTS)
    spent = math.fsum(m.get("seconds", 0.0) for m in lines if "outcome" in m)
    ended = outcomes(model_dir)
    if is_locked(model_dir) and open_attempt(model_dir) is not None:
        # One that goes on is not killed.
        ended["killed"] -= 1
        began = datetime.datetime.fromisoformat(lines[-1]["began"])
        spent += (datetime.datetime.now(datetime.UTC) - began).total_seconds()
    speeds = sorted(m["tokens_per_second"] for m in trained)
    return ReportedRun(
        name=name,
        params=params,
        curve=curve(metrics, objective),
        step=max((m["step"] for m in metrics), default=0),
        attempts=ended,
        tokens_per_second=speeds[len(speeds) // 2] if speeds else None,
        hours=spent / 3600,
        goodput=min(useful / spent, 1.0) if spent and not ended["killed"] else None,
        command=command,
        is_whole=(model_dir / RESULT).exists(),
    )


def table(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Returns titles and rows, the best run first."""
    titles = [
        *("run", *report.names, report.objective, "step", "tokens_per_second", "hours"),
        *("goodput_fraction", "preempted", "failed"),
    ]
    rows = [
        [
            run.name,
            *(run.params.get(name) for name in report.names),
            *(run.value, run.step, run.tokens_per_second, run.hours, run.goodput),
            *(run.attempts["preempted"], run.attempts["failed"] + run.attempts["killed"]),
        ]
        for run in report.ordered
    ]
    return titles, rows


def as_text(value: Any) -> str:
    """Writes one cell for a person: five digits, and nothing for what is not there."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def as_csv(report: Report) -> str:
    """Returns the table with all digits."""
    text = io.StringIO()
    titles, rows = table(report)
    csv.writer(text, lineterminator="\n").writerows([titles, *rows])
    return text.getvalue()


def as_markdown(report: Report) -> str:
    """Returns the table for a README."""
    titles, rows = table(report)
    lines = [titles, ["---"] * len(titles), *[[as_text(v) for v in row] for row in rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)

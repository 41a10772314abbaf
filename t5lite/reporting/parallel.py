"""Parallel coordinates: a line for each run through its parameters to its objective."""

import math
from typing import Any

import matplotlib.figure

from t5lite.reporting.report import Report, ReportedRun
from t5lite.reporting.style import PALETTE, empty_axes, short_name, value_order
from t5lite.reporting.tables import cell_text

# Values of an axis that are all written beside it; of more only the ends are.
MAX_LABELS = 6


def parallel_coordinates(report: Report) -> matplotlib.figure.Figure | None:
    """Draws the runs that have a value; on the last axis the best value is at the top."""
    runs = [run for run in report.runs if run.value is not None]
    if len(runs) < 2:
        return None
    names = report.parameters
    figure, axes = empty_axes(max(6.4, 1.8 * (len(names) + 1)))
    axes.grid(visible=False)
    heights = [[_height(report, name, run) for run in runs] for name in names]
    values = [run.value or 0.0 for run in runs]
    worst = min(values) if report.maximize else max(values)
    best = max(values) if report.maximize else min(values)
    heights.append([(value - worst) / ((best - worst) or 1.0) for value in values])
    order = sorted(range(len(runs)), key=lambda i: heights[-1][i])
    for rank, index in enumerate(order):
        is_best = rank == len(order) - 1
        axes.plot(
            range(len(heights)),
            [column[index] for column in heights],
            color=PALETTE[1] if is_best else PALETTE[0],
            alpha=1.0 if is_best else 0.15 + 0.5 * rank / len(order),
            linewidth=2.2 if is_best else 1.2,
            label=f"best: run {runs[index].name}" if is_best else None,
        )
    for position, name in enumerate(names):
        points = sorted(
            {(h, r.params.get(name)) for h, r in zip(heights[position], runs, strict=True)},
            key=lambda pair: pair[0],
        )
        shown = points if len(points) <= MAX_LABELS else [points[0], points[-1]]
        for height, value in shown:
            _write(axes, position, height, cell_text(value))
    _write(axes, len(names), 0.0, f"{cell_text(worst)}  worst")
    _write(axes, len(names), 1.0, f"{cell_text(best)}  best")
    for position in range(len(heights)):
        axes.axvline(position, color="0.7", linewidth=0.8, zorder=0)
    labels = [*map(short_name, names), f"{report.objective}\n({report.direction})"]
    axes.set_xticks(range(len(heights)), labels, fontsize=8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlim(-0.1, len(heights) - 0.4)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _write(axes: Any, position: int, height: float, text: str) -> None:
    offset = {"textcoords": "offset points", "xytext": (4, 3)}
    # On white, so that lines do not cross the text.
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    axes.annotate(text, (position, height), fontsize=8, bbox=box, **offset)


def _height(report: Report, name: str, run: ReportedRun) -> float:
    """Returns the height in [0, 1] of a run on the axis of a binding."""
    values, numeric = value_order(report, name)
    if name not in run.params:
        return 0.0
    if not numeric or len(values) == 1:
        return values.index(run.params[name]) / max(len(values) - 1, 1)
    scale = math.log if name in report.logarithmic else float
    own: Any = run.params[name]
    low = scale(values[0])
    high = scale(values[-1])
    return (scale(own) - low) / (high - low)

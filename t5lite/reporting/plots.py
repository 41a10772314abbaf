"""What a report shows as pictures, and the page that holds all of it."""

import base64
import html
import io
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib.figure

from t5lite.reporting.report import Report, ReportedRun, as_text, table

# Okabe and Ito's colours, which people who see few colours tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# More curves than this are drawn alike, but for the best.
MOST_NAMED = len(COLOURS)


def figures(report: Report, importance: dict[str, float]) -> dict[str, Any]:
    """Returns the figures by name; those for which there is nothing to show are left out."""
    drawn = {"curves": _curves(report)}
    for name in report.names:
        drawn[f"by_{name.replace('/', '_')}"] = _by_value(report, name)
    if len(report.names) > 1:
        drawn["parallel_coordinates"] = _parallel(report)
    if importance:
        drawn["importance"] = _importance(importance)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def write(report: Report, importance: dict[str, float], folder: pathlib.Path) -> None:
    """Writes each figure as a PNG and `report.html`, one page that needs no other file."""
    images = []
    for name, figure in figures(report, importance).items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150)
        (folder / f"{name}.png").write_bytes(picture.getvalue())
        images.append((name, base64.b64encode(picture.getvalue()).decode()))
    (folder / "report.html").write_text(_page(report, images), encoding="utf-8")


def _axes(width: float = 6.4, height: float = 4.0) -> tuple[Any, Any]:
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _label(kind: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(f"{_short(name)} {as_text(value)}" for name, value in kind)


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _curves(report: Report) -> Any:
    """A line for each kind of run, in a band from the least to the greatest of its seeds."""
    kinds: dict[Any, list[ReportedRun]] = {}
    for run in report.runs:
        if run.curve:
            kinds.setdefault(run.kind if run.params else (("run", run.name),), []).append(run)
    if not kinds:
        return None
    figure, axes = _axes(7.2)
    sign = -1 if report.maximize else 1

    def value(kind: Any) -> float:
        return sign * statistics.fmean(run.value or 0.0 for run in kinds[kind])

    best_first = sorted(kinds, key=value)
    for rank, kind in enumerate(best_first):
        values: dict[int, list[float]] = {}
        for run in kinds[kind]:
            for step, number in run.curve:
                values.setdefault(step, []).append(number)
        # Where some seeds are not yet there, the others alone would bend the line.
        whole = {s: v for s, v in sorted(values.items()) if len(v) == len(kinds[kind])} or values
        named = rank < MOST_NAMED
        colour = COLOURS[rank] if named else "0.8"
        means = [statistics.fmean(v) for v in whole.values()]
        layer = len(kinds) - rank
        axes.plot(
            *(list(whole), means),
            color=colour,
            label=_label(kind) if named else None,
            zorder=layer,
            linewidth=1.6,
        )
        if len(kinds[kind]) > 1:
            lows, highs = [min(v) for v in whole.values()], [max(v) for v in whole.values()]
            band = {"color": colour, "alpha": 0.18, "zorder": layer, "linewidth": 0}
            axes.fill_between(list(whole), lows, highs, **band)
    axes.set_xlabel("step")
    axes.set_ylabel(report.objective)
    title = "best first; bands from the least to the greatest of the seeds"
    rest = len(kinds) - MOST_NAMED
    title += f"; grey: the other {rest}" if rest > 0 else ""
    axes.legend(fontsize=8, frameon=False, title=title, title_fontsize=7)
    return figure


def _positions(report: Report, name: str) -> tuple[list[Any], bool]:
    """Returns the values of what was varied in order, and whether they are numbers."""
    values = {run.params[name] for run in report.runs if name in run.params}
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return sorted(values, key=(lambda v: v) if numbers else str), numbers


def _by_value(report: Report, name: str) -> Any:
    runs = [run for run in report.runs if run.value is not None and name in run.params]
    if not runs:
        return None
    figure, axes = _axes()
    values, numbers = _positions(report, name)
    at = [run.params[name] if numbers else values.index(run.params[name]) for run in runs]
    axes.plot(at, [run.value for run in runs], "o", color=COLOURS[0], alpha=0.7, markersize=6)
    best = report.best
    if best in runs:
        place = at[runs.index(best)]
        axes.plot([place], [best.value], "o", color=COLOURS[1], label="best", markersize=8)
        axes.legend(frameon=False)
    if not numbers:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
    elif name in report.logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(name)
    axes.set_ylabel(report.objective)
    return figure


def _parallel(report: Report) -> Any:
    """A line for each run through what was varied to its value, the better the darker."""
    runs = [run for run in report.runs if run.value is not None]
    if len(runs) < 2:
        return None
    names = report.names
    figure, axes = _axes(max(6.4, 1.8 * (len(names) + 1)))
    axes.grid(visible=False)
    scales = [[_height(report, name, run) for run in runs] for name in names]
    values = [run.value or 0.0 for run in runs]
    low, high = min(values), max(values)
    scales.append([(value - low) / ((high - low) or 1.0) for value in values])
    order = sorted(range(len(runs)), key=lambda i: values[i], reverse=not report.maximize)
    for rank, index in enumerate(order):
        is_best = rank == len(order) - 1
        axes.plot(
            range(len(scales)),
            [scale[index] for scale in scales],
            color=COLOURS[1] if is_best else COLOURS[0],
            alpha=1.0 if is_best else 0.15 + 0.5 * rank / len(order),
            linewidth=2.2 if is_best else 1.2,
        )
    for place, name in enumerate(names):
        points = sorted(
            {(s, r.params.get(name)) for s, r in zip(scales[place], runs, strict=True)},
            key=lambda pair: pair[0],
        )
        shown = points if len(points) <= 6 else [points[0], points[-1]]
        for height, value in shown:
            axes.annotate(
                as_text(value),
                (place, height),
                textcoords="offset points",
                xytext=(4, 3),
                fontsize=8,
            )
    for height, value in ((0.0, low), (1.0, high)):
        axes.annotate(
            as_text(value),
            (len(names), height),
            textcoords="offset points",
            xytext=(4, 3),
            fontsize=8,
        )
    for place in range(len(scales)):
        axes.axvline(place, color="0.7", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(scales)), [*map(_short, names), report.objective], fontsize=8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlim(-0.1, len(scales) - 0.6)
    return figure


def _height(report: Report, name: str, run: ReportedRun) -> float:
    values, numbers = _positions(report, name)
    if name not in run.params:
        return 0.0
    if not numbers or len(values) == 1:
        return values.index(run.params[name]) / max(len(values) - 1, 1)
    scale = math.log if name in report.logarithmic else float
    mine: Any = run.params[name]
    low, high, value = (scale(v) for v in (values[0], values[-1], mine))
    return (value - low) / (high - low)


def _importance(importance: dict[str, float]) -> Any:
    figure, axes = _axes(6.4, 1.0 + 0.4 * len(importance))
    names = sorted(importance, key=lambda name: importance[name])
    axes.barh(names, [importance[name] for name in names], color=COLOURS[0])
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance for being among the best (PED-ANOVA)")
    return figure


def _page(report: Report, images: Sequence[tuple[str, str]]) -> str:
    titles, rows = table(report)
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(as_text(v))}</td>" for v in row) + "</tr>\n"
        for row in rows
    )
    pictures = "".join(
        f"<h2>{html.escape(name.replace('_', ' '))}</h2>\n"
        f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">\n'
        for name, data in images
    )
    best = report.best
    command = (
        ""
        if best is None
        else f"<h2>best: {html.escape(best.name)}</h2>\n<pre>{html.escape(best.command)}</pre>\n"
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{html.escape(report.objective)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }}
th, td {{ padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; }}
div {{ overflow-x: auto; }}
img {{ max-width: 100%; }}
pre {{ white-space: pre-wrap; background: #f5f5f5; padding: 0.6rem; }}
</style>
<h1>{html.escape(report.objective)}</h1>
{command}{pictures}<h2>all runs</h2>
<div><table><tr>{head}</tr>
{body}</table></div>
</html>
"""

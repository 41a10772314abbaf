"""The figures of a report: curves, values, and importance. `parallel` draws one more."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import matplotlib.ticker

from t5lite.reporting.goodput import KINDS, LOST
from t5lite.reporting.parallel import parallel_coordinates
from t5lite.reporting.report import Report, ReportedRun
from t5lite.reporting.style import PALETTE, empty_axes, objective_label, short_name, value_order
from t5lite.reporting.tables import cell_text

# More curves than colours are drawn in grey, except the best.
MAX_NAMED_CURVES = len(PALETTE)
# Values on an axis that each get a tick of their own.
MAX_TICKS = 10
# Runs beyond it, which are the worst, have no bar.
MAX_BARS = 40
# Of the kinds of goodput, in their order, steps that were lost last.
GOODPUT_COLOURS = (*(PALETTE[i] for i in (2, 4, 3, 5, 0)), "0.4", "0.8", PALETTE[1])


def report_figures(report: Report) -> dict[str, matplotlib.figure.Figure]:
    """Returns the figures by name; a figure without data is left out."""
    drawn = {"curves": _curves(report)}
    # Seeds are noise: a figure over them is drawn only if nothing else varies.
    for name in report.parameters or report.names:
        drawn[f"by_{name.replace('/', '_')}"] = _by_value(report, name)
    if len(report.parameters) > 1:
        drawn["parallel_coordinates"] = parallel_coordinates(report)
    if shares := report.importance.shares:
        drawn["importance"] = _importance(shares)
    drawn["goodput"] = _goodput(report)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _label(kind: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(f"{short_name(name)} {cell_text(value)}" for name, value in kind)


def _curves(report: Report) -> matplotlib.figure.Figure | None:
    """Draws a line for each kind of run, in a band from its lowest to its highest seed."""
    kinds: dict[Any, list[ReportedRun]] = {}
    for run in report.runs:
        if run.curve:
            kinds.setdefault(run.kind if run.params else (("run", run.name),), []).append(run)
    if not kinds:
        return None
    figure, axes = empty_axes(7.2)
    sign = -1 if report.maximize else 1

    def mean_value(kind: Any) -> float:
        return sign * statistics.fmean(run.value or 0.0 for run in kinds[kind])

    for rank, kind in enumerate(sorted(kinds, key=mean_value)):
        named = rank < MAX_NAMED_CURVES
        label = (_label(kind) or "all seeds") if named else None
        colour = PALETTE[rank] if named else "0.8"
        _draw_kind(axes, kinds[kind], colour, label, layer=len(kinds) - rank)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.set_ylabel(objective_label(report))
    title = "best first"
    if any(len(runs) > 1 for runs in kinds.values()):
        title += "; bands from the lowest to the highest seed"
    rest = len(kinds) - MAX_NAMED_CURVES
    title += f"; grey: the other {rest}" if rest > 0 else ""
    legend = axes.legend(fontsize=8, title=title, title_fontsize=7, edgecolor="none")
    # Above all curves, which would cross its text.
    legend.set_zorder(len(kinds) + 1)
    return figure


def _draw_kind(
    axes: Any, runs: Sequence[ReportedRun], colour: str, label: str | None, layer: int
) -> None:
    values: dict[int, list[float]] = {}
    for run in runs:
        for step, number in run.curve:
            values.setdefault(step, []).append(number)
    # At a step that only some seeds have reached, their mean alone would bend the line.
    whole = {s: v for s, v in sorted(values.items()) if len(v) == len(runs)} or values
    means = [statistics.fmean(v) for v in whole.values()]
    axes.plot(list(whole), means, color=colour, label=label, zorder=layer, linewidth=1.6)
    if len(runs) > 1:
        lows = [min(v) for v in whole.values()]
        highs = [max(v) for v in whole.values()]
        band = {"color": colour, "alpha": 0.18, "zorder": layer, "linewidth": 0}
        axes.fill_between(list(whole), lows, highs, **band)


def _by_value(report: Report, name: str) -> matplotlib.figure.Figure | None:
    """Draws the objective of every run against one binding."""
    runs = [run for run in report.runs if run.value is not None and name in run.params]
    if not runs:
        return None
    figure, axes = empty_axes()
    values, numeric = value_order(report, name)
    at = [run.params[name] if numeric else values.index(run.params[name]) for run in runs]
    axes.plot(at, [run.value for run in runs], "o", color=PALETTE[0], alpha=0.7, markersize=6)
    best = report.best
    if best in runs:
        # A ring around the point: a filled marker would pass for one more run.
        axes.plot(
            [at[runs.index(best)]],
            [best.value],
            "o",
            markerfacecolor="none",
            markeredgecolor=PALETTE[1],
            markeredgewidth=2,
            markersize=13,
            linestyle="none",
            label=f"best: run {best.name}",
        )
        axes.legend(frameon=False)
    if not numeric:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
    elif name in report.logarithmic:
        axes.set_xscale("log")
    elif all(isinstance(value, int) for value in values):
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        if len(values) <= MAX_TICKS:
            axes.set_xticks(values)
    axes.margins(x=0.1)
    axes.set_xlabel(name)
    axes.set_ylabel(objective_label(report))
    return figure


def _importance(shares: Mapping[str, float]) -> matplotlib.figure.Figure:
    figure, axes = empty_axes(6.4, 1.2 + 0.4 * len(shares))
    names = sorted(shares, key=lambda name: shares[name])
    bars = axes.barh(names, [shares[name] for name in names], color=PALETTE[0])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("importance for being in the better half of the settings (PED-ANOVA)")
    return figure


def _goodput(report: Report) -> matplotlib.figure.Figure | None:
    """Draws a bar for each run, divided into the kinds of its time."""
    found = [(run.name, run.goodput) for run in report.ordered if run.goodput is not None]
    found = found[:MAX_BARS]
    if not found:
        return None
    figure, axes = empty_axes(7.2, 1.4 + 0.3 * len(found))
    names = [name for name, _ in found]
    left = [0.0] * len(found)
    for kind, colour in zip([*KINDS, LOST], GOODPUT_COLOURS, strict=True):
        widths = [goodput.seconds[kind] for _, goodput in found]
        axes.barh(names, widths, left=left, color=colour, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds of all attempts")
    axes.legend(fontsize=7, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return figure

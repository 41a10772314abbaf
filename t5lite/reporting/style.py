"""Colours, axes and labels that the figures of a report share."""

from typing import Any

import matplotlib.figure

from t5lite.reporting.report import Report

# The palette of Okabe and Ito, which remains distinct with colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def empty_axes(width: float = 6.4, height: float = 4.0) -> tuple[matplotlib.figure.Figure, Any]:
    """Returns a figure of a size in inches, and its axes."""
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def objective_label(report: Report) -> str:
    """Returns the label of an axis of the objective."""
    return f"{report.objective}\n({report.direction})"


def short_name(name: str) -> str:
    """Returns the parameter of a gin name.

    >>> short_name("Cosine.learning_rate")
    'learning_rate'
    """
    return name.rpartition(".")[2]


def value_order(report: Report, name: str) -> tuple[list[Any], bool]:
    """Returns the values of a binding in order, and whether all of them are numbers."""
    values = {run.params[name] for run in report.runs if name in run.params}
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return sorted(values, key=(lambda v: v) if numeric else str), numeric

"""The tables of a report, for a terminal, as CSV and as Markdown."""

import csv
import io
from typing import Any

from t5lite.reporting.goodput import KINDS, LOST
from t5lite.reporting.report import Report


def report_table(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Returns titles and rows, the best run first; None is a missing value."""
    titles = ["run", *report.names, report.objective, "step", "tokens_per_second", "hours"]
    titles += ["goodput_fraction", "preempted", "failed", "rejected", "ended"]
    rows = []
    for run in report.ordered:
        row = [run.name, *(run.params.get(name) for name in report.names)]
        row += [run.value, run.step, run.tokens_per_second, run.hours]
        row.append(None if run.goodput is None else run.goodput.fraction)
        failed = sum(run.attempts[outcome] for outcome in ("failed", "killed", "stalled"))
        row += [run.attempts["preempted"], failed, run.attempts["rejected"], run.ended]
        rows.append(row)
    return titles, rows


def goodput_table(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Returns titles and rows of the seconds by kind, for the runs that recorded them."""
    kinds = [*KINDS, LOST]
    rows = [
        [run.name, *(run.goodput.seconds[kind] for kind in kinds)]
        for run in report.ordered
        if run.goodput is not None
    ]
    return ["run", *(f"{kind}_seconds" for kind in kinds)], rows


def cell_text(value: Any) -> str:
    """Returns one cell for a reader: five digits, and nothing for a missing value."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def csv_text(report: Report) -> str:
    """Returns the table with all digits."""
    text = io.StringIO()
    titles, rows = report_table(report)
    csv.writer(text, lineterminator="\n").writerows([titles, *rows])
    return text.getvalue()


def markdown_text(report: Report) -> str:
    """Returns the tables for a README."""
    tables = [report_table(report)]
    if (goodput := goodput_table(report))[1]:
        tables.append(goodput)
    return "\n".join(_markdown(titles, rows) for titles, rows in tables)


def _markdown(titles: list[str], rows: list[list[Any]]) -> str:
    lines = [titles, ["---"] * len(titles), *[[cell_text(v) for v in row] for row in rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)

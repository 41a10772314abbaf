"""`report.html`, one page that holds the tables and figures of a report."""

import base64
import html
import io
import pathlib
from collections.abc import Sequence
from typing import Any

from t5lite.reporting.plots import report_figures
from t5lite.reporting.report import Report
from t5lite.reporting.tables import (
    cell_text,
    csv_text,
    goodput_table,
    markdown_text,
    report_table,
)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; }
div { overflow-x: auto; }
img { max-width: 100%; }
pre { white-space: pre-wrap; background: #f5f5f5; padding: 0.6rem; }
"""


def write_report(report: Report, folder: pathlib.Path) -> None:
    """Writes `report.html`, `table.csv`, `table.md`, and each figure as a PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(csv_text(report))
    (folder / "table.md").write_text(markdown_text(report))
    images = []
    for name, figure in report_figures(report).items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150)
        (folder / f"{name}.png").write_bytes(picture.getvalue())
        images.append((name, base64.b64encode(picture.getvalue()).decode()))
    (folder / "report.html").write_text(_page(report, images), encoding="utf-8")


def _page(report: Report, images: Sequence[tuple[str, str]]) -> str:
    table = _html_table(*report_table(report))
    titles, rows = goodput_table(report)
    goodput = f"<h2>seconds of all attempts</h2>\n{_html_table(titles, rows)}" if rows else ""
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
    reason = report.importance.reason if report.parameters else ""
    remark = f"<p>No importance: {html.escape(reason)}.</p>\n" if reason else ""
    title = f"{html.escape(report.objective)} ({report.direction})"
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>{STYLE}</style>
<h1>{title}</h1>
{command}{pictures}{remark}<h2>all runs</h2>
{table}{goodput}</html>
"""


def _html_table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell_text(v))}</td>" for v in row) + "</tr>\n"
        for row in rows
    )
    return f"<div><table><tr>{head}</tr>\n{body}</table></div>\n"

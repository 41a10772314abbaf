"""`t5lite report`."""

import pathlib
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.table

from t5lite.core.errors import UserError

try:
    from t5lite.launching.launch import SPEC, read
    from t5lite.reporting import plots, report
except ModuleNotFoundError as missing:
    raise UserError(f"report needs {missing.name}; pip install 't5lite[sweep]'") from missing


def run(flags: Any, folders: Sequence[str]) -> None:
    """Prints the table of some runs, and writes it with plots where `--output` says so."""
    if not folders:
        raise UserError("report needs folders of runs or launches, as in t5lite report runs/lr")
    if flags.minimize and flags.maximize:
        raise UserError("--minimize and --maximize cannot both be there")
    found = report.collect(
        folders,
        objective=flags.maximize or flags.minimize,
        maximize=None if not (flags.maximize or flags.minimize) else bool(flags.maximize),
    )
    titles, rows = report.table(found)
    table = rich.table.Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*map(report.as_text, row))
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 1000
    console.print(table)
    if (best := found.best) is not None:
        print(f"\nbest: {best.name}\n{best.command}")
    if flags.output is None:
        return
    output = pathlib.Path(flags.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.csv").write_text(report.as_csv(found))
    (output / "table.md").write_text(report.as_markdown(found))
    launches = [read(pathlib.Path(f)) for f in folders if (pathlib.Path(f) / SPEC).exists()]
    importance = launches[0].study().importance() if len(launches) == 1 else {}
    plots.write(found, importance, output)
    print(f"\nwritten to {output}: report.html, table.csv, table.md and the plots")

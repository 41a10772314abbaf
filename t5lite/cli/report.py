"""`t5lite report`."""

import os
from collections.abc import Sequence
from typing import Any

from t5lite.cli.columns import columns_text, terminal_width
from t5lite.cli.paths import user_path
from t5lite.core.errors import UserError

try:
    from t5lite.reporting.page import write_report
    from t5lite.reporting.report import collect_runs
    from t5lite.reporting.tables import cell_text, goodput_table, report_table
except ModuleNotFoundError as missing:
    raise UserError(f"report needs {missing.name}; pip install 't5lite[sweep]'") from missing


def report_command(flags: Any, folders: Sequence[str]) -> None:
    """Prints the table of some runs, and writes it with plots to `--output`.

    Raises:
        UserError: for flags that do not fit together, or a folder that is no run and no launch.
    """
    if not folders:
        raise UserError("report needs folders of runs or launches, as in t5lite report runs/lr")
    if flags.minimize and flags.maximize:
        raise UserError("--minimize and --maximize are mutually exclusive")
    output = None if flags.output is None else user_path("--output", flags.output)
    report = collect_runs(
        folders,
        objective=flags.maximize or flags.minimize,
        maximize=bool(flags.maximize) if flags.maximize or flags.minimize else None,
    )
    titles, rows = report_table(report)
    cells = [[cell_text(value) for value in row] for row in rows]
    common = _common_folder([row[0] for row in cells])
    if common:
        print(f"runs below {common}")
        cells = [[row[0].removeprefix(common), *row[1:]] for row in cells]
    print(columns_text(titles, cells, width=terminal_width(), gin_names=report.names))
    print(f"\n{report.objective}: {report.direction}")
    titles, rows = goodput_table(report)
    if rows:
        print("\nseconds of all attempts; lost are those of steps that a restart repeated")
        cells = [[row[0].removeprefix(common), *map(cell_text, row[1:])] for row in rows]
        print(columns_text(titles, cells, width=terminal_width()))
    if (best := report.best) is not None:
        print(f"\nbest: {best.name}\n{best.command}")
    if report.parameters and report.importance.reason:
        print(f"\nno importance: {report.importance.reason}")
    if output is None:
        return
    write_report(report, output)
    print(f"\nwrote {output}: report.html, table.csv, table.md and the plots")


def _common_folder(names: Sequence[str]) -> str:
    """Returns the folder that all names begin with; "" if they are not paths or have none."""
    if len(names) < 2 or not all(os.sep in name for name in names):
        return ""
    if len({os.path.isabs(name) for name in names}) > 1:
        return ""
    common = os.path.commonpath([os.path.dirname(name) for name in names])
    return common + os.sep if common and common != os.sep else ""

"""Plain tables that fit the terminal: no cell is wrapped or cut."""

import os
import shutil
import sys
from collections.abc import Collection, Sequence

GAP = "  "


def terminal_width() -> int | None:
    """Returns the columns of the terminal, or of COLUMNS; None if the output is no terminal."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return None
    return shutil.get_terminal_size().columns


def columns_text(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None,
    left: Collection[str] = (),
    gin_names: Collection[str] = (),
) -> str:
    """Returns a table; one that is too wide continues in further blocks below.

    Each block begins with the first column, whose cells stand on lines of their own, above the
    others, if it leaves no room for one of them. Only a column that is wider than the terminal by
    itself exceeds `width`.

    Args:
        width: columns of the terminal; None for any width.
        left: titles of the columns that are aligned to the left; others are to the right.
        gin_names: titles that are gin names; in a table that is too wide they lose their owner
            unless two would be equal.

    >>> print(columns_text(["run", "loss", "step"], [["a", "0.5", "7"]], width=10))
    run  loss
      a   0.5
    <BLANKLINE>
    run  step
      a     7
    >>> print(columns_text(["run", "loss"], [["runs/a", "0.5"]], width=10))
    run
      loss
    runs/a
       0.5
    """
    columns = [[title, *cells] for title, *cells in zip(titles, *rows, strict=True)]
    if width is not None and sum(len(GAP) + max(map(len, c)) for c in columns) > width + len(GAP):
        short = [t.rpartition(".")[2] if t in gin_names else t for t in titles]
        for column, title in zip(columns, short, strict=True):
            column[0] = title if short.count(title) == 1 else column[0]
    first, *others = [_aligned(column, to_left=column[0] in left) for column in columns]
    if not others:
        return "\n".join(cell.rstrip() for cell in first)
    room = sys.maxsize if width is None else width
    is_apart = len(first[0]) + len(GAP) + max(len(column[0]) for column in others) > room
    indent = 0 if is_apart else len(first[0])
    used = indent
    blocks: list[list[list[str]]] = []
    for column in others:
        size = len(GAP) + len(column[0])
        if not blocks or used + size > room:
            blocks.append([])
            used = indent
        blocks[-1].append(column)
        used += size
    separator = f"\n{GAP}" if is_apart else GAP
    keys = columns[0] if is_apart else first
    return "\n\n".join(
        "\n".join(
            f"{key}{separator}{GAP.join(line)}".rstrip()
            for key, *line in zip(keys, *block, strict=True)
        )
        for block in blocks
    )


def _aligned(column: Sequence[str], *, to_left: bool) -> list[str]:
    width = max(map(len, column))
    return [cell.ljust(width) if to_left else cell.rjust(width) for cell in column]

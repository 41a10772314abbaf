"""Tables of scores on a terminal of 80 columns."""

from typing import Any

import rich.console
import rich.table

# The columns of the first table, and their formats.
LOSS_COLUMNS = {
    "step": ("step", "d"),
    "loss_nats_per_token": ("loss", ".4f"),
    "cross_entropy_nats_per_token": ("cross-entropy", ".4f"),
    "perplexity": ("perplexity", ".5g"),
    "accuracy_fraction": ("accuracy", ".1%"),
    "target_tokens": ("tokens", ",.0f"),
    "examples": ("examples", ",.0f"),
}
# Checkpoints side by side in the second table; further ones follow below.
CHECKPOINTS_PER_TABLE = 4


def print_score_tables(results: list[dict[str, Any]]) -> None:
    """Prints the losses of all results in one table, and all other scores in further ones."""
    console = rich.console.Console()
    table = rich.table.Table(title=f"{results[0]['split']}, losses in nats per token", box=None)
    for title, _ in LOSS_COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        table.add_row(*(format(result[name], form) for name, (_, form) in LOSS_COLUMNS.items()))
    console.print(table)
    # In order, once each: a metric of one's own may report other scores for another checkpoint.
    others = dict.fromkeys(
        name
        for result in results
        for name, value in result.items()
        if isinstance(value, float) and name not in LOSS_COLUMNS
    )
    for start in range(0, len(results), CHECKPOINTS_PER_TABLE):
        some = results[start : start + CHECKPOINTS_PER_TABLE]
        rest = rich.table.Table(box=None)
        # A name that is too long for the line continues on the next one.
        rest.add_column("score", overflow="fold")
        for result in some:
            rest.add_column(f"step {result['step']}", justify="right", no_wrap=True)
        for name in others:
            rest.add_row(name, *(format(r[name], ".5g") if name in r else "-" for r in some))
        console.print(rest)

"""Tables of scores, in blocks that fit the terminal."""

import math
from collections.abc import Mapping
from typing import Any

from t5lite.cli.columns import columns_text, terminal_width

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


def print_score_tables(results: list[dict[str, Any]]) -> None:
    """Prints the losses of all results in one table, and all other scores in another."""
    width = terminal_width()
    rows = [
        [_formatted(result, name, form) for name, (_, form) in LOSS_COLUMNS.items()]
        for result in results
    ]
    print(f"{results[0]['split']}, losses in nats per token")
    print(columns_text([title for title, _ in LOSS_COLUMNS.values()], rows, width=width))
    # In order, once each: a metric of one's own may report other scores for another checkpoint.
    names = dict.fromkeys(
        name
        for result in results
        for name, value in result.items()
        if isinstance(value, float) and name not in LOSS_COLUMNS
    )
    if names:
        titles = ["score", *(f"step {result['step']}" for result in results)]
        cells = [[name, *(_formatted(each, name, ".5g") for each in results)] for name in names]
        print(f"\n{columns_text(titles, cells, width=width, left=['score'])}")


def _formatted(result: Mapping[str, Any], name: str, form: str) -> str:
    """Returns a score; "-" if the result does not have it, "nan" if it is not finite."""
    if name not in result:
        return "-"
    value = result[name]
    return format(math.nan if value is None else value, form)

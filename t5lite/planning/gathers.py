"""What a program gathers that nobody asked for."""

from collections.abc import Mapping
from typing import Any

from t5lite.core.lazy import by_name
from t5lite.planning.program_text import Program


def held_whole(
    program: Program, params: Any, batch_size: int, lengths: Mapping[str, int], batch_shares: int
) -> tuple[str, ...]:
    """Returns what is split between devices, but stands whole in the program of one.

    These are the parameters of all layers at once (those of one layer at a time are gathered on
    purpose, as are embedding and logits), and activations of all rows of the batch.

    Args:
        params: shapes and shardings; those with a "layers" folder are stacked.
        lengths: of rows, in tokens, by the name of the feature.
        batch_shares: parts that the batch is split into.
    """
    present = {tuple(sorted(shape)): dtype for dtype, shape in program.shapes()}
    found = []
    for name, leaf in by_name(params).items():
        is_split = leaf.sharding.shard_shape(leaf.shape) != leaf.shape
        if "/layers/" in name and is_split and tuple(sorted(leaf.shape)) in present:
            found.append(f"all layers of {name}")
    if batch_shares > 1:
        for length in sorted(set(lengths.values())):
            rows = (batch_size, length)
            if any(len(shape) > 2 and shape[:2] == rows for _, shape in program.shapes()):
                found.append(f"activations of all {batch_size} rows of {length} tokens")
    return tuple(found)

"""What a program gathers that nobody asked for."""

import math
from collections.abc import Mapping
from typing import Any

from t5lite.core.lazy import by_name
from t5lite.planning.program_text import COLLECTIVES, Program


def held_whole(
    program: Program,
    params: Any,
    *,
    batch_size: int,
    lengths: Mapping[str, int],
    embed_dim: int,
    batch_shares: int,
) -> tuple[str, ...]:
    """Returns what is split between devices, but stands whole in the program of one.

    These are the parameters of all layers at once (those of one layer at a time are gathered on
    purpose, as are embedding and logits), where devices exchange them in that shape, and
    activations of all rows of the batch; embeddings of all rows that are split by their width are
    not whole.

    Args:
        params: shapes and shardings; those with a "layers" folder are stacked.
        lengths: of rows, in tokens, by the name of the feature.
        embed_dim: the model's width.
        batch_shares: parts that the batch is split into.
    """
    gathered = {
        tuple(sorted(shape))
        for instructions in program.computations.values()
        for instruction in instructions.values()
        if instruction.operation.removesuffix("-start") in COLLECTIVES
        for _, shape in instruction.shapes
    }
    found = []
    for name, leaf in by_name(params).items():
        is_split = leaf.sharding.shard_shape(leaf.shape) != leaf.shape
        if "/layers/" in name and is_split and tuple(sorted(leaf.shape)) in gathered:
            found.append(f"all layers of {name}")
    for length in sorted(set(lengths.values())) if batch_shares > 1 else ():
        rows = (batch_size, length)
        whole = math.prod(rows) * embed_dim
        shapes = (shape for _, shape in program.shapes())
        if any(shape[:2] == rows and math.prod(shape) >= whole for shape in shapes):
            found.append(f"activations of all {batch_size} rows of {length} tokens")
    return tuple(found)

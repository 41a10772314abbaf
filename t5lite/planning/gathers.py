"""What a program gathers that nobody asked for."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from t5lite.core.lazy import by_name
from t5lite.planning.program_text import COLLECTIVES, Program


def held_whole(
    program: Program,
    params: Any,
    *,
    rows: int,
    lengths: Mapping[str, int],
    embed_dim: int,
) -> tuple[str, ...]:
    """Returns what is split between devices, but stands whole in the program of one.

    These are the parameters of all layers at once (those of one layer at a time are gathered on
    purpose, as are embedding and logits), where devices exchange them in that shape, and
    activations of all rows, of one layer or of all, as [rows, length, ...] or [rows * length, ...].
    Embeddings of all rows that are split by their width are not whole.

    Args:
        params: shapes and shardings; those with a "layers" folder are stacked.
        rows: that all devices together work on at once, more than one device.
        lengths: of rows, in tokens, by the name of the feature.
        embed_dim: the model's width.
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
    for length in sorted(set(lengths.values())):
        if any(_holds(shape, rows, length, embed_dim) for _, shape in program.shapes()):
            found.append(f"activations of all {rows} rows of {length} tokens")
    return tuple(found)


def _holds(shape: tuple[int, ...], rows: int, length: int, embed_dim: int) -> bool:
    """Whether an array has all rows of all tokens, with all that there is of each."""
    is_there = (rows, length) in itertools.pairwise(shape) or rows * length in shape
    return is_there and math.prod(shape) >= rows * length * embed_dim

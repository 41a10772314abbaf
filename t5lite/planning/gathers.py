"""Arrays that a program gathers although the mesh splits them."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from t5lite.core.lazy import by_name
from t5lite.models.config import T5Config
from t5lite.planning.program_text import COLLECTIVES, Program


def unsplit_arrays(
    program: Program,
    params: Any,
    *,
    rows: int,
    lengths: Mapping[str, int],
    config: T5Config,
) -> tuple[str, ...]:
    """Returns descriptions of arrays that the mesh splits but that every device holds whole.

    These are parameters of all layers at once, if devices exchange them in that shape; parameters
    of one layer, the embedding and the logits are gathered on purpose. They are also activations of
    all rows, of one layer or of all, as [rows, length, ...] or [rows * length, ...]; activations of
    all rows that are split by their width are not whole.

    Args:
        params: shapes and shardings; parameters below "layers" are stacked.
        rows: rows that all devices together process at once, on more than one device.
        lengths: of rows, in tokens, by the name of the feature.
        config: of the model.
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
        stacks = [name.partition("_")[0] for name in lengths if lengths[name] == length]
        width = min(_width(config, stack) for stack in stacks)
        if any(_holds(shape, rows, length, width) for _, shape in program.shapes()):
            found.append(f"activations of all {rows} rows of {length} tokens")
    return tuple(found)


def _width(config: T5Config, stack: str) -> int:
    return config.encoder_config().embed_dim if stack == "encoder" else config.embed_dim


def _holds(shape: tuple[int, ...], rows: int, length: int, width: int) -> bool:
    """Whether an array has the whole width of all tokens of all rows."""
    has_all_tokens = (rows, length) in itertools.pairwise(shape) or rows * length in shape
    return has_all_tokens and math.prod(shape) >= rows * length * width

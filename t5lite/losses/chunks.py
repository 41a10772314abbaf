"""Sums over tokens whose logits are computed for a part of each row at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from t5lite.core.parts import sum_over_parts
from t5lite.losses.loss import LossSums


def sum_over_chunks(sums_of: Callable[..., LossSums], chunks: int, *arrays: Array) -> LossSums:
    """Returns the sums of `sums_of(*arrays)`, computed over parts of the rows in turn.

    Only one part has its logits in memory; the backward pass computes them again. A part has
    positions from all over a row, so from all devices that split rows.

    Args:
        chunks: number of parts; 1 calls `sums_of` directly.
        arrays: [b, l, ...]; padded with zeros to a multiple of `chunks`.
    """
    if chunks == 1:
        return sums_of(*arrays)

    def split(x: Array) -> Array:
        short = -x.shape[1] % chunks
        padded = jnp.pad(x, ((0, 0), (0, short), *((0, 0),) * (x.ndim - 2)))
        parts = padded.reshape(x.shape[0], -1, chunks, *x.shape[2:])
        return jnp.moveaxis(parts, 2, 0)

    sums: LossSums = sum_over_parts(jax.checkpoint(sums_of), tuple(map(split, arrays)))
    return sums

"""What a decoder keeps of the tokens that it has read, so that none is read twice."""

import dataclasses
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from t5lite.models.attention import KeysValues
from t5lite.models.positions import Start


class LayerCache(NamedTuple):
    """One layer's part of a cache."""

    own: KeysValues
    encoded: KeysValues | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """A value like any other: reading on returns a new one.

    The same tree holds shapes or shardings in the place of arrays, so no type is one.

    Args:
        length: tokens read so far, the same in all rows, int32 [].
        segment_ids: of those tokens, 0 behind them, int32 [b, capacity].
        own: keys and values of those tokens, [n, b, capacity, g, d] each.
        encoded: of what the encoder returned, [n, b, k, g, d] each; None without an encoder.
        encoded_segment_ids: int32 [b, k]; None without an encoder.
    """

    length: Any
    segment_ids: Any
    own: KeysValues
    encoded: KeysValues | None = None
    encoded_segment_ids: Any = None


def written(whole: Array, part: Array, start: Start, *, axis: int) -> Array:
    """Returns `whole` with `part` from `start` on along `axis`."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), start, axis)

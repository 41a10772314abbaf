"""What a decoder keeps of the tokens that it has read, so that none is read twice."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5lite.models.attention import KeysValues
from t5lite.models.positions import Start


class ByHead(NamedTuple):
    """Keys and values as a cache holds them: those of a head together, as products read them.

    Both products have tokens or features side by side where their results have them.
    """

    key: Float[Array, "b g d k"]
    value: Float[Array, "b g k d"]

    def read(self) -> KeysValues:
        """Returns what attention takes."""
        return KeysValues(jnp.moveaxis(self.key, 3, 1), jnp.swapaxes(self.value, 1, 2))

    def with_new(self, source: KeysValues, start: Start) -> "ByHead":
        """Returns the same with those of new tokens from `start` on."""
        new = by_head(source)
        return ByHead(
            written(self.key, new.key, start, axis=3), written(self.value, new.value, start, axis=2)
        )


def by_head(source: KeysValues) -> ByHead:
    """Returns keys and values as a cache holds them."""
    return ByHead(jnp.moveaxis(source.key, 1, 3), jnp.swapaxes(source.value, 1, 2))


class LayerCache(NamedTuple):
    """One layer's part of a cache: of the tokens that were read, and of what was encoded."""

    own: ByHead
    encoded: ByHead | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """A value like any other: reading on returns a new one.

    The same tree holds shapes or shardings in the place of arrays, so no type is one.

    Args:
        length: tokens read so far, the same in all rows, int32 [].
        segment_ids: of those tokens, 0 behind them, int32 [b, capacity].
        positions: where in the target those tokens stand, int32 [capacity].
        layers: one for each.
        encoded_segment_ids: int32 [b, k]; None without an encoder.
    """

    length: Any
    segment_ids: Any
    positions: Any
    layers: tuple[LayerCache, ...]
    encoded_segment_ids: Any = None


def written(whole: Array, part: Array, start: Start, *, axis: int) -> Array:
    """Returns `whole` with `part` from `start` on along `axis`."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), start, axis)


def grown(cache: Cache, more: int) -> Cache:
    """Returns a cache with room for so many tokens more."""

    def longer(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, more if n == axis else 0) for n in range(x.ndim)])

    return dataclasses.replace(
        cache,
        segment_ids=longer(cache.segment_ids, 1),
        positions=longer(cache.positions, 0),
        layers=tuple(
            layer._replace(own=ByHead(longer(layer.own.key, 3), longer(layer.own.value, 2)))
            for layer in cache.layers
        ),
    )

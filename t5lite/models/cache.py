"""What a decoder keeps of the tokens that it has processed, so that none is processed twice."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5lite.models.attention_layer import KeysValues


class ByHead(NamedTuple):
    """Keys and values as a cache holds them, in the layout in which both products read them."""

    key: Float[Array, "b g d k"]
    value: Float[Array, "b g k d"]

    def read(self) -> KeysValues:
        """Returns them as attention takes them."""
        return KeysValues(jnp.moveaxis(self.key, 3, 1), jnp.swapaxes(self.value, 1, 2))

    def with_new(self, source: KeysValues, start: Int[Array, ""]) -> "ByHead":
        """Returns them with those of new tokens, the first of them at `start`."""
        new = by_head(source)
        return ByHead(
            updated(self.key, new.key, start, axis=3), updated(self.value, new.value, start, axis=2)
        )

    def after(self, memory: "ByHead") -> "ByHead":
        """Returns those of a memory, then these."""
        return ByHead(
            jnp.concatenate([memory.key, self.key], axis=3),
            jnp.concatenate([memory.value, self.value], axis=2),
        )


def by_head(source: KeysValues) -> ByHead:
    """Returns keys and values as a cache holds them."""
    return ByHead(jnp.moveaxis(source.key, 1, 3), jnp.swapaxes(source.value, 1, 2))


class LayerCache(NamedTuple):
    """One layer's part of a cache: of the tokens so far, and of what was encoded.

    With merged attention, keys and values of what was encoded stand before those of tokens in
    `own`, so that no step copies them together.
    """

    own: ByHead
    encoded: ByHead | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """The state of incremental decoding, a value: each step returns a new one.

    The same tree also holds shapes or shardings instead of arrays, so the fields are untyped.

    Args:
        length: tokens so far, the same in all rows, int32 [].
        segment_ids: of those tokens, 0 in unused slots, int32 [b, capacity].
        positions: of those tokens in the target, int32 [capacity].
        layers: one for each layer.
        encoded_segment_ids: int32 [b, k]; None without an encoder.
    """

    length: Any
    segment_ids: Any
    positions: Any
    layers: tuple[LayerCache, ...]
    encoded_segment_ids: Any = None


def updated(whole: Array, part: Array, start: Int[Array, ""], *, axis: int) -> Array:
    """Returns `whole` with `part` at `start` along `axis`."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), start, axis)


def grown(cache: Cache, more: int) -> Cache:
    """Returns a cache with room for `more` tokens."""

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

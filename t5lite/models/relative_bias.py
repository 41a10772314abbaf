"""T5's relative position bias: a learned number for each head and bucket of distances, as data.

An attention implementation receives a `RelativeBias` and materialises it, whole or one block of
keys at a time, or hands its table to a kernel.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from t5lite.models.config_fields import T5Fields
from t5lite.models.initializers import ScaledInit, parameter
from t5lite.models.masks import Positions, key_positions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeBias:
    """A bias that depends on the head and on the bucket of key position minus query position.

    Args:
        table: [heads, buckets].
        query_positions, key_positions: int [q] and [k]; None is `query_offset` + 0, 1, ... for
            queries and 0, 1, ... for keys.
        query_offset: position of the first query.
        distance_limit: every distance is below it, in either direction.
        bidirectional, num_buckets, max_distance: of `relative_position_bucket`.
        dtype: of the bias.
    """

    table: Any
    query_positions: Positions = None
    key_positions: Positions = None
    query_offset: int = dataclasses.field(default=0, metadata={"static": True})
    distance_limit: int = dataclasses.field(metadata={"static": True})
    bidirectional: bool = dataclasses.field(metadata={"static": True})
    num_buckets: int = dataclasses.field(metadata={"static": True})
    max_distance: int = dataclasses.field(metadata={"static": True})
    dtype: DTypeLike = dataclasses.field(metadata={"static": True})

    def to_array(self, query_length: int, key_length: int) -> Float[Array, "1 h q k"]:
        """Returns the bias of every query on every key."""
        if self.query_positions is None and self.key_positions is None:
            first = 1 - query_length - self.query_offset
            values = self.values(np.arange(first, first + query_length + key_length - 1))
            return bias_from_distances(values, query_length, key_length)
        queries = self.query_positions
        keys = self.key_positions
        queries = jnp.arange(query_length) + self.query_offset if queries is None else queries
        keys = jnp.arange(key_length) if keys is None else keys
        values = self.values(np.arange(1 - self.distance_limit, self.distance_limit))
        return values[:, keys[None, :] - queries[:, None] + self.distance_limit - 1][None]

    def keys(self, start: int | Int[Array, ""], size: int) -> "RelativeBias":
        """Returns the bias on the keys `start` to `start + size` alone; `start` may be traced."""
        positions = key_positions(self.key_positions, start, size)
        return dataclasses.replace(self, key_positions=positions)

    def values(self, distances: Int[np.ndarray, "distances"]) -> Float[Array, "h distances"]:
        """Returns the bias for each distance, key position minus query position."""
        buckets = relative_position_bucket(
            distances,
            bidirectional=self.bidirectional,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
        )
        return jnp.asarray(self.table, self.dtype)[:, buckets]

    def materialised(self, query_length: int, key_length: int) -> "DenseBias":
        """Returns the bias with nothing left to compute in each layer."""
        return DenseBias(array=self.to_array(query_length, key_length))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseBias:
    """A bias that is an array, [#b, h, q, k]: of another kind, or materialised once for a stack."""

    array: Any

    def to_array(self, query_length: int, key_length: int) -> Float[Array, "#b h q k"]:
        """Returns the array."""
        assert self.array.shape[2:] == (query_length, key_length), self.array.shape
        bias: Float[Array, "#b h q k"] = self.array
        return bias

    def keys(self, start: int | Int[Array, ""], size: int) -> "DenseBias":
        """Returns the bias on the keys `start` to `start + size` alone; `start` may be traced."""
        array = jax.lax.dynamic_slice_in_dim(self.array, start, size, 3)
        return dataclasses.replace(self, array=array)

    def materialised(self, query_length: int, key_length: int) -> "DenseBias":
        """Returns the bias with nothing left to compute in each layer."""
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixedBias:
    """The bias on keys of a prefix, which depends on positions in examples, and on all others.

    Args:
        prefix: [#b, h, q, prefix].
        rest: on the keys after it.
        key_length: number of the keys after it.
    """

    prefix: Any
    rest: RelativeBias | DenseBias
    key_length: int = dataclasses.field(metadata={"static": True})

    def to_array(self, query_length: int, key_length: int) -> Float[Array, "#b h q k"]:
        """Returns the bias of every query on every key."""
        count = self.prefix.shape[3]
        assert key_length == count + self.key_length, (key_length, count, self.key_length)
        rest = self.rest.to_array(query_length, self.key_length)
        rows = max(self.prefix.shape[0], rest.shape[0])
        parts = (jnp.broadcast_to(x, (rows, *x.shape[1:])) for x in (self.prefix, rest))
        return jnp.concatenate(list(parts), axis=3)

    def keys(self, start: int | Int[Array, ""], size: int) -> DenseBias:
        """Returns the bias on the keys `start` to `start + size` alone; `start` may be traced."""
        count = self.prefix.shape[3]
        every = self.to_array(self.prefix.shape[2], count + self.key_length)
        return DenseBias(array=every).keys(start, size)

    def materialised(self, query_length: int, key_length: int) -> "PrefixedBias":
        """Returns the bias with nothing left to compute in each layer but joining both parts.

        Joined here, the rest would have a copy for each row of the batch.
        """
        rest = self.rest.materialised(query_length, self.key_length)
        return dataclasses.replace(self, rest=rest)


AttentionBias = RelativeBias | DenseBias | PrefixedBias


class RelativePositionBias(nn.Module):
    """The parameters of a `RelativeBias`, of one stack or of one layer.

    Parameters:
        rel_embedding [heads, relpos_buckets], variance scaling by the average fan, uniform.
    """

    config: T5Fields
    bidirectional: bool

    def setup(self) -> None:
        init = ScaledInit(1.0, "uniform", "fan_avg")
        shape = (self.config.num_heads, self.config.num_buckets)
        self.rel_embedding: Any = self.param(
            "rel_embedding", parameter(init, ("heads", "relpos_buckets")), shape
        )

    def __call__(
        self,
        distance_limit: int,
        query_positions: Positions = None,
        key_positions: Positions = None,
        query_offset: int = 0,
    ) -> RelativeBias:
        """Returns the bias; the arguments are those of `RelativeBias`."""
        config = self.config
        return RelativeBias(
            table=self.rel_embedding,
            query_positions=query_positions,
            key_positions=key_positions,
            query_offset=query_offset,
            distance_limit=distance_limit,
            bidirectional=self.bidirectional,
            num_buckets=config.num_buckets,
            max_distance=config.max_distance,
            dtype=config.compute_dtype,
        )

    def with_prefix(
        self,
        rest: RelativeBias | DenseBias,
        count: int,
        in_examples: Int[Array, "b q"] | Int[Array, "q"] | None,
        *,
        limit: int,
        key_length: int,
    ) -> AttentionBias:
        """Returns a bias with keys before all others: the tokens before the first of each example.

        Args:
            rest: on the others.
            count: of these keys.
            in_examples: positions of queries in their examples; None if there are no such keys.
            limit: every such position is below it.
            key_length: number of the other keys.
        """
        if count == 0:
            return rest
        assert in_examples is not None, "a prefix without positions of queries in their examples"
        farthest = limit + count - 1
        values = self(limit).values(np.arange(-farthest, 0))
        keys = jnp.expand_dims(jnp.arange(count) - count, range(in_examples.ndim))
        prefix = values[:, keys - in_examples[..., None] + farthest]
        prefix = prefix[None] if prefix.ndim == 3 else jnp.moveaxis(prefix, 1, 0)
        return PrefixedBias(prefix=prefix, rest=rest, key_length=key_length)


def relative_position_bucket(
    distance: Int[np.ndarray, "*shape"], *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Int[np.ndarray, "*shape"]:
    """Returns the bucket of each distance, key position minus query position.

    Half of the buckets hold one distance each, the others ranges that grow logarithmically up to
    `max_distance`, beyond which all share the last. With `bidirectional`, later keys have the
    upper half of the buckets; without it they share bucket 0, as a causal mask hides them.

    >>> relative_position_bucket(
    ...     np.array([-128, -8, -1, 0, 1, 8]), bidirectional=True, num_buckets=32, max_distance=128
    ... ).tolist()
    [15, 8, 1, 0, 17, 24]
    >>> relative_position_bucket(
    ...     np.array([-113, -16, -1, 0, 1]), bidirectional=False, num_buckets=32, max_distance=128
    ... ).tolist()
    [31, 16, 1, 0, 0]

    Source: huggingface/transformers@v5.24:src/transformers/models/t5/modeling_t5.py,
    T5Attention._relative_position_bucket, whose operations and their order this follows; T5X's
    differ by an epsilon that changes no bucket.
    """
    if bidirectional:
        num_buckets //= 2
        first = np.where(distance > 0, num_buckets, 0)
        distance = np.abs(distance)
    else:
        first = np.zeros_like(distance)
        distance = np.maximum(-distance, 0)
    exact = num_buckets // 2
    # NOTE: float32, and one operation after the other: rounding decides the bucket at a border.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    scaled = ratio / np.float32(np.log(max_distance / exact)) * np.float32(num_buckets - exact)
    # The ratio is negative for distances below `exact`, whose bucket is not taken from here.
    logarithmic = exact + scaled.astype(np.int64)
    bucket = np.where(distance < exact, distance, np.minimum(logarithmic, num_buckets - 1))
    return first + bucket


def bias_from_distances(
    values: Float[Array, "h distances"], query_length: int, key_length: int
) -> Float[Array, "1 h q k"]:
    """Returns bias[query, key] = values[key - query + query_length - 1], without a gather.

    The rows of the result are one vector, each row shifted one position to the left of the row
    below. Repeating the vector with one element of padding and cutting the result into rows that
    are one element shorter does that shift; its gradient is a plain sum instead of a scatter.

    >>> import jax.numpy as jnp
    >>> bias_from_distances(jnp.array([[-2.0, -1.0, 0.0, 1.0]]), 3, 2)[0, 0].tolist()
    [[0.0, 1.0], [-1.0, 0.0], [-2.0, -1.0]]
    """
    heads, distances = values.shape
    assert distances == query_length + key_length - 1, (distances, query_length, key_length)
    padded = jnp.pad(values, ((0, 0), (0, 1)))
    repeated = jnp.broadcast_to(padded[:, None, :], (heads, query_length, distances + 1))
    flat = repeated.reshape(heads, -1)[:, : query_length * distances]
    rows = flat.reshape(heads, query_length, distances)
    return rows[:, :, query_length - 1 :][None]

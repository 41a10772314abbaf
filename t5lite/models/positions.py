"""Where tokens are: T5's relative position bias, a learned number for each head and bucket of
distances, and rotary positions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t5lite.models.config import T5Config
from t5lite.models.initializers import Scaled, parameter

# The place of the first query among the keys, known or traced.
Start = int | Int[Array, ""]
Places = Int[Array, "_"] | Int[np.ndarray, "_"]
Bias = Float[Array, "1 h q k"]


def relative_position_bucket(
    distance: Int[np.ndarray, "*shape"], *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Int[np.ndarray, "*shape"]:
    """Returns the bucket of each distance, key position minus query position.

    Half of the buckets hold one distance each, the others ranges that grow logarithmically up to
    `max_distance`, beyond which all share the last. With `bidirectional`, keys to come have the
    upper half of the buckets; without it they share bucket 0, as a causal mask hides them.

    >>> relative_position_bucket(
    ...     np.array([-128, -8, -1, 0, 1, 8]), bidirectional=True, num_buckets=32, max_distance=128
    ... ).tolist()
    [15, 8, 1, 0, 17, 24]
    >>> relative_position_bucket(
    ...     np.array([-113, -16, -1, 0, 1]), bidirectional=False, num_buckets=32, max_distance=128
    ... ).tolist()
    [31, 16, 1, 0, 0]

    Source: google-research/t5x@main:t5x/examples/t5/layers.py, RelativePositionBiases.
    """
    if bidirectional:
        num_buckets //= 2
        first = np.where(distance > 0, num_buckets, 0)
        distance = np.abs(distance)
    else:
        first = np.zeros_like(distance)
        distance = np.maximum(-distance, 0)
    exact = num_buckets // 2
    # NOTE: float32, because its rounding decides the bucket of distances at a border.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    scale = np.float32((num_buckets - exact) / np.log(max_distance / exact))
    # The ratio is negative for distances under `exact`, whose bucket is not taken from here.
    logarithmic = exact + (ratio * scale).astype(np.int64)
    bucket = np.where(distance < exact, distance, np.minimum(logarithmic, num_buckets - 1))
    return first + bucket


def bias_from_distances(
    values: Float[Array, "h distances"], query_length: int, key_length: int
) -> Float[Array, "1 h q k"]:
    """Returns bias[query, key] = values[key - query + query_length - 1], without a gather.

    The rows of the result are one vector, each a place further left than the row below. Repeating
    the vector with one place of padding and cutting the result into rows of one place less does
    that shift; its gradient is a plain sum, where a gather's would be a scatter.

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


class RelativePositionBias(nn.Module):
    """The bias on the scores of self-attention, of one stack or of one layer.

    Parameters:
        rel_embedding [heads, relpos_buckets], variance scaling by the average fan, uniform.
    """

    config: T5Config
    bidirectional: bool

    def setup(self) -> None:
        init = Scaled(1.0, "uniform", "fan_avg")
        shape = (self.config.num_heads, self.config.num_buckets)
        self.rel_embedding: Any = self.param(
            "rel_embedding", parameter(init, ("heads", "relpos_buckets")), shape
        )

    def __call__(self, query_length: int, key_length: int, start: Start = 0) -> Bias:
        """Returns the bias of queries at `start`, start + 1, ... on the keys 0, 1, ..."""
        values = self.values(np.arange(1 - key_length, key_length))
        # What queries that end at start + query_length - 1 see.
        if not isinstance(start, int) or (start, query_length) != (0, key_length):
            first, size = key_length - query_length - start, key_length + query_length - 1
            values = jax.lax.dynamic_slice_in_dim(values, first, size, axis=1)
        return bias_from_distances(values, query_length, key_length)

    def at(self, queries: Places, keys: Places) -> Bias:
        """Returns the bias of queries at any places on keys at any places, up to the last of them.

        Args:
            keys: of places, none as far away as there are keys.
        """
        furthest = keys.shape[0]
        values = self.values(np.arange(1 - furthest, furthest))
        return values[:, keys[None, :] - queries[:, None] + furthest - 1][None]

    def values(self, distances: Int[np.ndarray, "distances"]) -> Float[Array, "h distances"]:
        """Returns the bias for each distance, key position minus query position."""
        buckets = relative_position_bucket(
            distances,
            bidirectional=self.bidirectional,
            num_buckets=self.config.num_buckets,
            max_distance=self.config.max_distance,
        )
        return jnp.asarray(self.rel_embedding, self.config.compute_dtype)[:, buckets]


def rotate(x: Float[Array, "b l h d"], places: Places, base: float) -> Float[Array, "b l h d"]:
    """Turns each pair (i, i + d / 2) of a head by position * base^(-2 i / d).

    The product of a query and a key turned so depends on the distance between them alone.

    >>> turned = rotate(jnp.ones((1, 2, 1, 2)), np.arange(2), 10000.0)
    >>> [[f"{number:.3f}" for number in row] for row in turned[0, :, 0].tolist()]
    [['1.000', '1.000'], ['-0.301', '1.382']]

    Source: Su et al., "RoFormer", section 3.2.2; the pairing is Llama's.
    """
    half = x.shape[-1] // 2
    speeds = base ** (-np.arange(half, dtype=np.float32) / half)
    angles = jnp.asarray(places, jnp.float32)[:, None] * jnp.asarray(speeds)[None]
    sin, cos = (f(angles)[None, :, None, :] for f in (jnp.sin, jnp.cos))
    first, second = (part.astype(jnp.float32) for part in (x[..., :half], x[..., half:]))
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)

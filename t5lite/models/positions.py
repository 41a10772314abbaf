"""T5's relative position bias: a learned number for each head and bucket of distances."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t5lite.models.config import T5Config


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
    """The bias that one stack adds to the scores of self-attention in all of its layers.

    Parameters:
        rel_embedding [heads, relpos_buckets], variance scaling by the average fan, uniform.
    """

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, query_length: int, key_length: int) -> Float[Array, "1 h q k"]:
        config = self.config
        init = nn.with_logical_partitioning(
            nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
            ("heads", "relpos_buckets"),
        )
        table = self.param("rel_embedding", init, (config.num_heads, config.num_buckets))
        buckets = relative_position_bucket(
            np.arange(1 - query_length, key_length),
            bidirectional=self.bidirectional,
            num_buckets=config.num_buckets,
            max_distance=config.max_distance,
        )
        values = jnp.asarray(table, config.compute_dtype)[:, buckets]
        return bias_from_distances(values, query_length, key_length)

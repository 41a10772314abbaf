"""Top-k over a vocabulary.

On CPUs, `jax.lax.top_k` is sequential: over a whole vocabulary it takes as long as a layer.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Scores that share one maximum.
CHUNK = 128


def top_k_of_rows(x: Float[Array, "b n"], k: int) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """`jax.lax.top_k`; on a mesh each device takes its own rows, which XLA on CPUs would gather."""
    if not nn.get_logical_axis_rules():
        scores, indices = jax.lax.top_k(x, k)
        return scores, indices
    rows = nn.logical_to_mesh_axes(("batch", None))
    of_rows = jax.shard_map(lambda x: jax.lax.top_k(x, k), in_specs=rows, out_specs=[rows, rows])
    scores, indices = of_rows(x)
    return scores, indices


def top_k(
    x: Float[Array, "b g v"], shifts: Float[Array, "b g"], k: int
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """Returns the k highest of x + shifts of each row, sorted, and their indices into g * v.

    The k highest lie in the k chunks with the highest maxima, so only those chunks are shifted and
    sorted.

    >>> scores, indices = top_k(jnp.array([[[1.0, 3.0], [2.0, 4.0]]]), jnp.array([[2.0, 0.0]]), 2)
    >>> scores.tolist(), indices.tolist()
    ([[5.0, 4.0]], [[1, 3]])
    """
    rows, groups, size = x.shape
    if groups * size <= 2 * k * CHUNK:
        return top_k_of_rows((x + shifts[..., None]).reshape(rows, -1), k)
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, -size % CHUNK)), constant_values=-jnp.inf)
    chunks = padded.reshape(rows, groups, -1, CHUNK)
    of_group = chunks.shape[2]
    maxima = (jnp.max(chunks, axis=-1) + shifts[..., None]).reshape(rows, -1)
    # Chunks in their original order, so that the first of equal scores wins.
    highest = jnp.sort(top_k_of_rows(maxima, k)[1], axis=-1)
    chunks = chunks.reshape(rows, -1, CHUNK)
    some = jnp.take_along_axis(chunks, highest[..., None], axis=1)
    some = some + jnp.take_along_axis(shifts, highest // of_group, axis=1)[..., None]
    scores, indices = top_k_of_rows(some.reshape(rows, k * CHUNK), k)
    chunk = jnp.take_along_axis(highest, indices // CHUNK, axis=1)
    within = chunk % of_group * CHUNK + indices % CHUNK
    return scores, (chunk // of_group * size + within).astype(jnp.int32)

"""The highest of many scores, and where they are.

On a CPU what JAX has for this looks at one score after the other, and for a whole vocabulary takes
as long as a layer does.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Scores that are looked through together.
CHUNK = 128


def top_k(x: Float[Array, "b v"], k: int) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """Returns the k highest scores of each row in order, and their places, as `jax.lax.top_k` does.

    The k highest lie in the k chunks with the highest maxima, so only those are sorted.

    >>> scores, places = top_k(jnp.array([[1.0, 3.0, 2.0]]), 2)
    >>> scores.tolist(), places.tolist()
    ([[3.0, 2.0]], [[1, 2]])
    """
    rows, size = x.shape
    if size <= 2 * k * CHUNK:
        # JAX gives a list.
        scores, places = jax.lax.top_k(x, k)
        return scores, places
    padded = jnp.pad(x, ((0, 0), (0, -size % CHUNK)), constant_values=-jnp.inf)
    chunks = padded.reshape(rows, -1, CHUNK)
    # In the order in which they stand, so that of equal scores the first wins.
    _, highest = jax.lax.top_k(jnp.max(chunks, axis=-1), k)
    highest = jnp.sort(highest, axis=-1)
    some = jnp.take_along_axis(chunks, highest[..., None], axis=1).reshape(rows, k * CHUNK)
    scores, places = jax.lax.top_k(some, k)
    chunk = jnp.take_along_axis(highest, places // CHUNK, axis=1)
    return scores, (chunk * CHUNK + places % CHUNK).astype(jnp.int32)

"""Filters of sampling: logits in, logits out, with excluded tokens at minus infinity."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Logits = Float[Array, "b v"]


def keep_top_k(logits: Logits, k: Int[Array, "b"]) -> Logits:
    """Keeps the k highest logits of each row and ties with the k-th; k = 0 keeps all.

    >>> logits = jnp.array([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    >>> keep_top_k(logits, jnp.array([2, 0])).tolist()
    [[-inf, 3.0, 2.0], [1.0, 3.0, 2.0]]
    """
    wanted = jnp.where(k > 0, k, logits.shape[-1])

    def enough(least: Float[Array, "b"]) -> Bool[Array, "b"]:
        return jnp.sum(logits >= least[:, None], axis=-1) >= wanted

    return _at_least(logits, _highest(enough, logits))


def keep_top_p(logits: Logits, p: Float[Array, "b"]) -> Logits:
    """Keeps the fewest highest logits of each row whose probabilities sum to at least p, and ties
    with the last of them; p = 1 keeps all.

    >>> logits = jnp.log(jnp.array([[0.1, 0.6, 0.3]]))
    >>> jnp.isfinite(keep_top_p(logits, jnp.array([0.8]))).tolist()
    [[False, True, True]]
    """
    probabilities = jax.nn.softmax(logits, axis=-1)

    def enough(least: Float[Array, "b"]) -> Bool[Array, "b"]:
        kept = jnp.where(logits >= least[:, None], probabilities, 0.0)
        return jnp.sum(kept, axis=-1) >= p

    # Rounded probabilities of all tokens may sum to slightly less than 1.
    return _at_least(logits, jnp.where(p < 1.0, _highest(enough, logits), -jnp.inf))


def _at_least(logits: Logits, least: Float[Array, "b"]) -> Logits:
    return jnp.where(logits >= least[:, None], logits, -jnp.inf)


def _highest(
    enough: Callable[[Float[Array, "b"]], Bool[Array, "b"]], logits: Logits
) -> Float[Array, "b"]:
    """Returns the highest threshold of each row for which `enough` holds, by bisecting its bits.

    It needs no sort and takes a different k or p per row. Floats are ordered like their bits, so 32
    passes over the logits give the exact answer.
    """

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        # The midpoint, without overflow.
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        holds = enough(_float_of(middle))
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    low = jnp.full(logits.shape[0], _ordered(jnp.float32(-jnp.inf)))
    high = jnp.full(logits.shape[0], _ordered(jnp.float32(jnp.inf)))
    return _float_of(jax.lax.fori_loop(0, 32, halve, (low, high))[0])


def _ordered(x: Float[Array, "*b"]) -> Int[Array, "*b"]:
    """Integers in the order of the floats: negative floats have all bits but the sign inverted."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _float_of(ordered: Int[Array, "*b"]) -> Float[Array, "*b"]:
    bits = jnp.where(ordered < 0, ordered ^ jnp.int32(0x7FFFFFFF), ordered)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)

"""Attention masks from segment ids: True where a query may attend to a key.

A segment id is 0 where a row holds nothing and 1, 2, ... for the examples packed into it, so one
rule serves packed and unpacked rows alike.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def segment_mask(
    query_segment_ids: Int[Array, "b q"], key_segment_ids: Int[Array, "b k"]
) -> Bool[Array, "b 1 q k"]:
    """Lets a query attend to the keys of its own example, and to no empty place.

    >>> import jax.numpy as jnp
    >>> segment_mask(jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 2, 0]]))[0, 0].astype(int)
    Array([[1, 1, 0, 0],
           [0, 0, 1, 0],
           [0, 0, 0, 0]], dtype=int32)
    """
    query, key = query_segment_ids[:, None, :, None], key_segment_ids[:, None, None, :]
    return (query == key) & (key != 0)


def causal_mask(length: int) -> Bool[Array, "1 1 l l"]:
    """Lets a position attend to itself and to what came before.

    >>> causal_mask(3)[0, 0].astype(int)
    Array([[1, 0, 0],
           [1, 1, 0],
           [1, 1, 1]], dtype=int32)
    """
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


def prefix_mask(is_prefix: Int[Array, "b l"]) -> Bool[Array, "b 1 l l"]:
    """Lets the places of a prefix, which are 1, attend to each other.

    >>> import jax.numpy as jnp
    >>> prefix_mask(jnp.array([[1, 1, 0]]))[0, 0].astype(int)
    Array([[1, 1, 0],
           [1, 1, 0],
           [0, 0, 0]], dtype=int32)
    """
    prefix = is_prefix > 0
    return prefix[:, None, :, None] & prefix[:, None, None, :]

"""Random streams by name and step, never by order of splitting."""

import zlib

import jax
from jaxtyping import Array, Int, Key


def stream(key: Key[Array, ""], name: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """Returns the key of the stream `name` at `step`; adding a stream changes no other.

    >>> import jax
    >>> root = jax.random.key(0)
    >>> bool(stream(root, "dropout", 3) == stream(root, "dropout", 3))
    True
    >>> bool(stream(root, "dropout", 3) == stream(root, "init", 3))
    False
    """
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)

"""Dropout with one mask for all positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from t5lite.core.numbers import Number


def dropout(x: Float[Array, "*shape"], rate: Number, key: Key[Array, ""]) -> Float[Array, "*shape"]:
    """Zeroes with probability `rate` and scales the rest by 1 / (1 - rate).

    One mask serves all positions of the second last axis, as in T5X: a [length, length] matrix of
    attention weights or a [length, embed] activation costs one row of random numbers.
    """
    shape = (*x.shape[:-2], 1, x.shape[-1])
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


class Dropout(nn.Module):
    """`dropout` with the key of the stream "dropout"; the identity for a rate of None."""

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], rate: Number | None) -> Float[Array, "*shape"]:
        return x if rate is None else dropout(x, rate, self.make_rng("dropout"))

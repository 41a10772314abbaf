"""Stochastic rounding, which keeps updates smaller than the spacing of bfloat16 numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float32, Key

from t5lite.core.lazy import name_of
from t5lite.core.streams import stream


def stochastic_round(x: Float32[Array, "*shape"], key: Key[Array, ""]) -> BFloat16[Array, "*shape"]:
    """Returns one of the two nearest bfloat16 numbers at random, so that the mean is `x`.

    >>> x = jnp.full(4096, 1.0 + 2**-9)  # a quarter of the way from 1 to the next, 1 + 2**-7
    >>> rounded = stochastic_round(x, jax.random.key(0)).astype(jnp.float32)
    >>> sorted(set(rounded.tolist())), abs(float(rounded.mean()) - float(x[0])) < 3e-4
    ([1.0, 1.0078125], True)
    """
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    cut = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


def apply_updates(params: Any, updates: Any, key: Key[Array, ""]) -> Any:
    """Returns params + updates in the dtype of each parameter, bfloat16 rounded stochastically.

    Args:
        key: of the step; every parameter has its own stream, by its name.
    """

    def apply(path: Any, param: Array, update: Array) -> Array:
        if param.dtype != jnp.bfloat16:
            return optax.apply_updates(param, update)
        moved = param.astype(jnp.float32) + update.astype(jnp.float32)
        return stochastic_round(moved, stream(key, name_of(path)))

    return jax.tree_util.tree_map_with_path(apply, params, updates)

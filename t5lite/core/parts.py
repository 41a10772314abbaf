"""Sums over parts of a batch, computed one after another to save memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def sum_over_parts(function: Callable[..., Any], parts: tuple[Any, ...]) -> Any:
    """Returns the sum of `function(*part)`, a tree of arrays, over all parts, in a scan.

    Args:
        parts: the arguments, each with its parts stacked along the first axis.

    >>> import jax.numpy as jnp
    >>> sum_over_parts(lambda x: {"square": x * x}, (jnp.array([1.0, 2.0, 3.0]),))["square"].item()
    14.0
    """

    def add(total: Any, part: tuple[Any, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*part)), None

    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]

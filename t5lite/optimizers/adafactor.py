"""Adafactor as T5 used it, which differs from optax's.

Source: Shazeer & Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", and
google-research/t5x@main:t5x/adafactor.py for the constants and their order.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from t5lite.core.numbers import Number

# Layers and experts stacked in one array are independent parameters.
BATCH_AXES = ("layers", "experts")
# The dimension of this name is the rows, and all others together are the columns: a kernel [embed,
# heads, kv] is factored as the matrix [embed, heads * kv].
ROW_AXIS = "embed"


class Factored(NamedTuple):
    """Means of the squared gradient over columns and over rows; dimensions of length 1 are kept."""

    row: Float[Array, "..."]
    column: Float[Array, "..."]


class AdafactorState(NamedTuple):
    """Number of steps, and the second moment (factored or whole) and momentum of each parameter."""

    step: Int[Array, ""]
    second_moment: Any
    momentum: Any


def adafactor(
    learning_rate: Number,
    *,
    param_axes: Any,
    decay_rate: Number = 0.8,
    epsilon1: Number = 1e-30,
    epsilon2: Number = 1e-3,
    clipping_threshold: Number = 1.0,
    beta1: float | None = None,
    weight_decay_rate: Number | None = None,
    min_dim_size_to_factor: int = 128,
    multiply_by_parameter_scale: bool = True,
) -> optax.GradientTransformation:
    """Returns T5's Adafactor.

    Args:
        learning_rate: relative to the scale of each parameter (see the last argument).
        param_axes: the tree of parameters with the names of the axes of each as leaves.
        decay_rate: the moment's decay at step t, counted from 1, is 1 - t^-decay_rate.
        epsilon1: added to the squared gradient.
        epsilon2: minimum scale of a parameter.
        clipping_threshold: maximum root mean square of an update; larger updates are scaled down.
        beta1: decay of momentum, kept on the scaled update; None for no momentum.
        weight_decay_rate: fraction of each parameter subtracted at each step, independent of the
            learning rate; None for no decay.
        min_dim_size_to_factor: moments of parameters with fewer rows or columns are not factored.
        multiply_by_parameter_scale: whether an update is multiplied by the parameter's root mean
            square.
    """

    def init(params: Any) -> AdafactorState:
        def moment(param: Array, axes: tuple[str, ...]) -> Any:
            squares = jnp.zeros_like(param, jnp.float32)
            factored = _is_factored(param.shape, axes, min_dim_size_to_factor)
            return _factors(squares, axes) if factored else squares

        momentum = None if beta1 is None else jax.tree.map(jnp.zeros_like, params)
        return AdafactorState(
            jnp.zeros([], jnp.int32), jax.tree.map(moment, params, param_axes), momentum
        )

    def update(
        grads: Any, state: AdafactorState, params: Any | None = None
    ) -> tuple[Any, AdafactorState]:
        assert params is not None, "Adafactor scales by the parameters"
        step = jnp.asarray(state.step + 1, jnp.float32)
        decay = 1.0 - step ** (-decay_rate)

        def moment_of(grad: Array, moment: Any, axes: tuple[str, ...]) -> Any:
            squares = jnp.square(grad.astype(jnp.float32)) + epsilon1
            new = _factors(squares, axes) if isinstance(moment, Factored) else squares
            return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, moment, new)

        def update_of(grad: Array, moment: Any, axes: tuple[str, ...], param: Array) -> Array:
            if isinstance(moment, Factored):
                rows, _ = _rows_and_columns(axes)
                row_mean = jnp.mean(moment.row, axis=rows, keepdims=True)
                scale = jax.lax.rsqrt(moment.row / row_mean) * jax.lax.rsqrt(moment.column)
            else:
                scale = jax.lax.rsqrt(moment)
            change = grad.astype(jnp.float32) * scale
            change = change / jnp.maximum(1.0, _rms(change, axes) / clipping_threshold)
            if multiply_by_parameter_scale:
                change = change * jnp.maximum(_rms(param, axes), epsilon2)
            return learning_rate * change

        moments = jax.tree.map(moment_of, grads, state.second_moment, param_axes)
        steps = jax.tree.map(update_of, grads, moments, param_axes, params)
        momentum = state.momentum
        if beta1 is not None:
            steps = jax.tree.map(lambda m, s: beta1 * m + (1.0 - beta1) * s, momentum, steps)
            momentum = steps
        if weight_decay_rate is None:
            updates = jax.tree.map(jnp.negative, steps)
        else:
            updates = jax.tree.map(lambda s, p: -s - weight_decay_rate * p, steps, params)
        return updates, AdafactorState(state.step + 1, moments, momentum)

    return optax.GradientTransformation(init, update)


def _rows_and_columns(axes: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rows = tuple(i for i, name in enumerate(axes) if name == ROW_AXIS)
    columns = tuple(i for i, name in enumerate(axes) if name not in (ROW_AXIS, *BATCH_AXES))
    return rows, columns


def _is_factored(shape: tuple[int, ...], axes: tuple[str, ...], min_size: int) -> bool:
    rows, columns = _rows_and_columns(axes)
    if not rows or not columns:
        return False
    return min(math.prod(shape[i] for i in dims) for dims in (rows, columns)) >= min_size


def _factors(squares: Float[Array, "..."], axes: tuple[str, ...]) -> Factored:
    rows, columns = _rows_and_columns(axes)
    return Factored(
        row=jnp.mean(squares, axis=columns, keepdims=True),
        column=jnp.mean(squares, axis=rows, keepdims=True),
    )


def _rms(x: Float[Array, "..."], axes: tuple[str, ...]) -> Float[Array, "..."]:
    """The root mean square of each layer's parameter, with dimensions of length 1."""
    dims = tuple(i for i, name in enumerate(axes) if name not in BATCH_AXES)
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=dims, keepdims=True))

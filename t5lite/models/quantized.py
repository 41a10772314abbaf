"""Kernels of linear maps in int8 with a scale for each output, for parameters that do not train."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from t5lite.models.adapters import MapSite, broadcast_to_axes

# The parameter of a map, beside its int8 kernel, that holds the scales [*stacked, *outputs].
KERNEL_SCALE = "kernel_scale"
_LARGEST = 127


def quantized(
    site: MapSite, kernel: Float[Array, "..."]
) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """Returns a kernel in int8, and for each output the scale by which it is multiplied, float32.

    The scale is the largest absolute value of the output over 127, and values are rounded to the
    nearest multiple, so that none differs by more than half of the scale. An output of zeros has
    the scale 1.

    Args:
        kernel: of one map, or of all layers of a stack, along the first axis.

    Source: Dettmers et al. 2022, "LLM.int8()", vector-wise quantization of weights.
    Differs: activations are not quantized, and no feature is kept apart as an outlier.
    """
    wide = kernel.astype(jnp.float32)
    axes = _input_axes(site)
    largest = jnp.max(jnp.abs(wide), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / _LARGEST, 1.0)
    values = jnp.round(wide / scale).astype(jnp.int8)
    return values, jnp.squeeze(scale, axes)


def dequantized(
    site: MapSite, values: Int8[Array, "..."], scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns the float32 kernel that `quantized` stands for."""
    wide: Any = jnp.expand_dims(scale, _input_axes(site))
    return values.astype(jnp.float32) * wide


def scaled_result(
    site: MapSite, result: Float[Array, "..."], scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns the result of a map from that of its int8 values; the product is float32."""
    letters = site.letters
    wide = broadcast_to_axes(scale, letters.stacked + letters.outputs, letters.result)
    return (result.astype(jnp.float32) * wide).astype(result.dtype)


def _input_axes(site: MapSite) -> tuple[int, ...]:
    """Returns the axes of a kernel's inputs from its end: it may have a first axis of layers."""
    last = len(site.outputs)
    return tuple(range(-last - len(site.inputs), -last))

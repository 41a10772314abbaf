"""Linear maps with named inputs and outputs, to which adapters attach.

A map is an einsum with one kernel. It knows its full name (`decoder/layers/self_attention/query`)
and which dimensions it reads and writes, so that an adapter can add parameters of the right shape
without knowing the module that holds the map.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float, Int8

from t5lite.models.adapters import Axis, MapFunction, MapSite, map_adapters
from t5lite.models.initializers import ConstantInit, Initializer, parameter
from t5lite.models.quantized import KERNEL_SCALE, dequantized, scaled_result

# The name that checkpoint policies know the results of linear maps by.
LINEAR_RESULT = "linear"

# A letter that no einsum string of the models uses, for the axis that `vmap` adds.
_VMAP_LETTER = "z"

_linear_p = Primitive("t5lite_linear")


def linear(
    einsum: str, x: Float[Array, "..."], kernel: Float[Array, "..."] | Int8[Array, "..."]
) -> Float[Array, "..."]:
    """Returns einsum(x, kernel) in the dtype of x; the kernel's gradient has the kernel's dtype.

    It is differentiable in forward and reverse mode, to any order.

    NOTE: it is a primitive because the kernel gradient that JAX derives from einsum is computed
    transposed, for which XLA copies the activations into another layout on CPUs. A `custom_vjp`
    would rule out forward mode, and `custom_derivatives.linear_call` rules out `vmap`.
    """
    result: Float[Array, "..."] = _linear_p.bind(x, kernel, einsum=einsum)
    return result


def _einsum(x: Any, kernel: Any, *, einsum: str) -> Any:
    return jnp.einsum(einsum, x, kernel.astype(x.dtype))


def _shape(x: Any, kernel: Any, *, einsum: str) -> Any:
    # From the letters: tracing the einsum for its shape takes longer than all else here.
    x_axes, kernel_axes, result_axes = _split(einsum)
    sizes = dict(zip(x_axes + kernel_axes, x.shape + kernel.shape, strict=True))
    return jax.core.ShapedArray(tuple(sizes[axis] for axis in result_axes), x.dtype)


def _split(einsum: str) -> tuple[str, str, str]:
    """Returns the axes of the input, the kernel and the result."""
    operands, result = einsum.split("->")
    x, kernel = operands.split(",")
    return x, kernel, result


def _gradient_of_input(gradient: Any, x: Any, kernel: Any, *, einsum: str) -> Any:
    x_axes, kernel_axes, result_axes = _split(einsum)
    reverse = f"{result_axes},{kernel_axes}->{x_axes}"
    return jnp.einsum(reverse, gradient, kernel.astype(x.aval.dtype))


def _gradient_of_kernel(gradient: Any, x: Any, kernel: Any, *, einsum: str) -> Any:
    x_axes, kernel_axes, result_axes = _split(einsum)
    reverse = f"{x_axes},{result_axes}->{kernel_axes}"
    return jnp.einsum(reverse, x, gradient, preferred_element_type=kernel.aval.dtype)


def _batched(operands: Any, axes: Any, *, einsum: str) -> tuple[Any, int]:
    names = list(_split(einsum))
    moved = list(operands)
    for n, axis in enumerate(axes):
        if axis is not None:
            moved[n] = jnp.moveaxis(operands[n], axis, 0)
            names[n] = _VMAP_LETTER + names[n]
    with_axis = f"{names[0]},{names[1]}->{_VMAP_LETTER}{names[2]}"
    return _linear_p.bind(*moved, einsum=with_axis), 0


_linear_p.def_impl(_einsum)
_linear_p.def_abstract_eval(_shape)
ad.defbilinear(_linear_p, _gradient_of_input, _gradient_of_kernel)
batching.primitive_batchers[_linear_p] = _batched
mlir.register_lowering(_linear_p, mlir.lower_fun(_einsum, multiple_results=False))


def add_parameter(module: nn.Module, name: str, initializer: Initializer, *axes: Axis) -> Any:
    """Returns the value of a parameter of a module with these dimensions."""
    init = parameter(initializer, tuple(axis.name for axis in axes))
    return module.param(name, init, tuple(axis.size for axis in axes))


class LinearMap(nn.Module):
    """A linear map in the dtype of its input, and the adapters attached to it.

    Parameters:
        kernel [*stacked, *inputs, *outputs], initialised by `initializer`; with `has_bias` also
        bias [*outputs], zeros; whatever the attached adapters add. A kernel that does not train
        may be int8 beside kernel_scale [*stacked, *outputs]; see `models.quantized`.

    Args:
        einsum: a constant "x,kernel->result" in the letters of `t5lite.core`.
        inputs, outputs: the dimensions that the map contracts and produces, in the kernel's order.
        initializer: of the kernel.
        full_name: the name by which adapters select the map.
        adapters: of the model; those whose patterns match `full_name` attach, the first innermost.
        stacked: dimensions over which there is a map each, such as experts; they have no biases.
        has_bias: whether a bias is added to the result, before adapters change it.
    """

    einsum: str
    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]
    initializer: Initializer
    full_name: str
    adapters: tuple[Any, ...] = ()
    stacked: tuple[Axis, ...] = ()
    has_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel: Any = self._parameter("kernel", self.initializer, *self._kernel_axes)
        bias: Any = None
        if self.has_bias:
            assert not self.stacked, "a bias of each map would not stand beside its outputs"
            bias = self._parameter("bias", ConstantInit(0.0), *self.outputs)

        site = MapSite(
            name=self.full_name,
            einsum=self.einsum,
            stacked=self.stacked,
            inputs=self.inputs,
            outputs=self.outputs,
            kernel=kernel,
            parameter=self._parameter,
            bias=bias,
            dropout_key=self._dropout_key,
        )
        scale: Any = None
        if self.has_variable("params", KERNEL_SCALE):
            scale = self.get_variable("params", KERNEL_SCALE)
            site = dataclasses.replace(site, kernel=dequantized(site, kernel, scale))

        def base(x: Float[Array, "..."]) -> Float[Array, "..."]:
            result = linear(self.einsum, x, kernel)
            if scale is not None:
                result = scaled_result(site, result, scale)
            result = checkpoint_name(result, LINEAR_RESULT)
            if bias is None:
                return result
            return result + jnp.expand_dims(bias.astype(x.dtype), range(result.ndim - bias.ndim))

        attached = map_adapters(self.adapters, self.full_name)
        apply: MapFunction = base
        for adapter in attached:
            apply = adapter.wrap(site, apply)
        return apply(x)

    @property
    def _kernel_axes(self) -> tuple[Axis, ...]:
        return (*self.stacked, *self.inputs, *self.outputs)

    def _parameter(self, name: str, initializer: Initializer, *axes: Axis) -> Any:
        return add_parameter(self, name, initializer, *axes)

    def _dropout_key(self) -> Any:
        return self.make_rng("dropout") if self.has_rng("dropout") else None

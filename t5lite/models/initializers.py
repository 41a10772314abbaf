"""How parameters are initialised, in a form that can be printed."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key


@dataclasses.dataclass(frozen=True)
class NormalInit:
    """A normal distribution with mean 0."""

    std: float = 1.0

    def __call__(
        self, key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike
    ) -> Float[Array, "..."]:
        return nn.initializers.normal(self.std)(key, tuple(shape), dtype)

    def describe(self, shape: Sequence[int]) -> str:
        """Returns the distribution and its standard deviation."""
        return f"normal, std {self.std:g}"


@dataclasses.dataclass(frozen=True)
class ConstantInit:
    """The same number everywhere."""

    value: float

    def __call__(
        self, key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike
    ) -> Float[Array, "..."]:
        return nn.initializers.constant(self.value)(key, tuple(shape), dtype)

    def describe(self, shape: Sequence[int]) -> str:
        """Returns the number."""
        return f"constant {self.value:g}"


@dataclasses.dataclass(frozen=True)
class ScaledInit:
    """A distribution with mean 0 and variance `scale` / fan, where fan is the number of inputs.

    Args:
        distribution: "normal", "truncated_normal" or "uniform".
        fan: "fan_in", or "fan_avg" for the mean of the numbers of inputs and outputs.
        in_axes, out_axes: dimensions of the inputs and of the outputs; their sizes multiply.

    >>> ScaledInit(1.0, "normal", in_axes=(0,), out_axes=(1, 2)).describe((16, 2, 8))
    'normal, std 0.25'
    """

    scale: float
    distribution: str
    fan: str = "fan_in"
    in_axes: tuple[int, ...] = (-2,)
    out_axes: tuple[int, ...] = (-1,)

    def __call__(
        self, key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike
    ) -> Float[Array, "..."]:
        init: Any = nn.initializers.variance_scaling(
            self.scale,
            self.fan,  # type: ignore[arg-type]  # a Literal there
            self.distribution,  # type: ignore[arg-type]
            self.in_axes,
            self.out_axes,
        )
        return init(key, tuple(shape), dtype)

    def describe(self, shape: Sequence[int]) -> str:
        """Returns the distribution and its standard deviation for a parameter of this shape."""
        inputs = math.prod(shape[axis] for axis in self.in_axes)
        outputs = math.prod(shape[axis] for axis in self.out_axes)
        fan = inputs if self.fan == "fan_in" else (inputs + outputs) / 2
        return f"{self.distribution.replace('_', ' ')}, std {math.sqrt(self.scale / fan):.3g}"


@dataclasses.dataclass(frozen=True, eq=False)
class ComputedInit:
    """Values that a function computes, such as those of an adapter from the kernel of its map.

    Args:
        compute: returns them; called only when a parameter is made.
        description: what they are.
    """

    compute: Callable[[], Float[Array, "..."]]
    description: str

    def __call__(
        self, key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike
    ) -> Float[Array, "..."]:
        values = self.compute()
        assert values.shape == tuple(shape), (values.shape, shape)
        return values.astype(dtype)

    def describe(self, shape: Sequence[int]) -> str:
        """Returns what they are."""
        return self.description


Initializer = NormalInit | ConstantInit | ScaledInit | ComputedInit


class Parameter(nn.LogicallyPartitioned):
    """A new parameter with the logical names of its axes and a description of its initialiser."""

    initializer: str = struct.field(default="", pytree_node=False)


def parameter(init: Initializer, axes: tuple[str, ...]) -> Callable[..., Any]:
    """Returns the initialiser for `self.param` of a parameter with these logical axes."""

    def make(key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = "float32") -> Parameter:
        made = init(key, shape, dtype)
        return Parameter(made, axes, initializer=init.describe(shape))

    return make

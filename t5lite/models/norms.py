"""Norms, and where in a layer they stand: the parts that `T5Config.norm` and
`T5Config.norm_placement` name.

To add a norm, write a module and a row of `NORMS`; for a placement, a row of `NORM_PLACEMENTS`.
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5lite.core.numbers import Number
from t5lite.models.config_fields import T5Fields
from t5lite.models.dropout import Dropout
from t5lite.models.initializers import ConstantInit, parameter

# Where the norms of a sublayer stand: "pre" normalises its input, "post" its output before the
# output is added to the residual stream, "sum" the residual stream after that.
NORM_PLACEMENTS: Mapping[str, tuple[str, ...]] = {
    "pre": ("pre",),
    "sandwich": ("pre", "post"),
    "post": ("sum",),
}
# How the names of their parameters begin.
_PREFIXES = {"pre": "pre", "post": "post", "sum": "post"}


def rms_norm(
    x: Float[Array, "*shape e"], scale: Float[Array, "e"], epsilon: float
) -> Float[Array, "*shape e"]:
    """Divides by the root mean square, computed in float32, then scales; no mean, no bias.

    >>> rms_norm(jnp.array([3.0, -3.0]), jnp.array([1.0, 2.0]), 1e-6).round(3).tolist()
    [1.0, -2.0]
    """
    normed = _normed(x, epsilon).astype(x.dtype)
    return normed * jnp.expand_dims(scale.astype(x.dtype), tuple(range(x.ndim - 1)))


def layer_norm(
    x: Float[Array, "*shape e"],
    scale: Float[Array, "e"],
    bias: Float[Array, "e"] | None,
    epsilon: float,
) -> Float[Array, "*shape e"]:
    """Subtracts the mean and divides by the standard deviation, scales and adds, all in float32.

    >>> layer_norm(jnp.array([1.0, 3.0]), jnp.ones(2), jnp.array([0.0, 5.0]), 0.0).tolist()
    [-1.0, 6.0]
    """
    wide = x.astype(jnp.float32)
    result = _normed(wide - jnp.mean(wide, axis=-1, keepdims=True), epsilon) * _like(scale, x)
    return (result if bias is None else result + _like(bias, x)).astype(x.dtype)


def _like(weights: Float[Array, "e"], x: Float[Array, "*shape e"]) -> Float[Array, "*ones e"]:
    """Returns float32 weights with as many axes as `x`."""
    return jnp.expand_dims(weights.astype(jnp.float32), tuple(range(x.ndim - 1)))


def _normed(x: Float[Array, "*shape e"], epsilon: float) -> Float[Array, "*shape e"]:
    wide = x.astype(jnp.float32)
    mean_of_squares = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return wide * jax.lax.rsqrt(mean_of_squares + epsilon)


class RMSNorm(nn.Module):
    """`rms_norm` with its scale.

    Parameters:
        scale [embed], ones.

    Args:
        axis: logical name of the dimension, "kv" instead of "embed" in `T5Config.qk_norm`.
    """

    config: T5Fields
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*shape e"]) -> Float[Array, "*shape e"]:
        scale: Any = self.param("scale", parameter(ConstantInit(1.0), (self.axis,)), (x.shape[-1],))
        return rms_norm(x, scale, self.config.norm_epsilon)


class RMSNormPlusOne(nn.Module):
    """RMS norm that scales by 1 plus a weight, all in float32.

    Parameters:
        scale [embed], zeros.

    Source: google-deepmind/gemma@main:gemma/gm/nn/_layers.py, RMSNorm.
    """

    config: T5Fields
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*shape e"]) -> Float[Array, "*shape e"]:
        init = parameter(ConstantInit(0.0), (self.axis,))
        scale: Any = self.param("scale", init, (x.shape[-1],))
        wide = jnp.expand_dims(1.0 + scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
        return (_normed(x, self.config.norm_epsilon) * wide).astype(x.dtype)


class LayerNorm(nn.Module):
    """`layer_norm` with its weights.

    Parameters:
        scale [embed], ones; with `has_bias` also bias [embed], zeros.
    """

    config: T5Fields
    axis: str = "embed"
    has_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*shape e"]) -> Float[Array, "*shape e"]:
        shape = (x.shape[-1],)
        scale: Any = self.param("scale", parameter(ConstantInit(1.0), (self.axis,)), shape)
        bias: Any = None
        if self.has_bias:
            bias = self.param("bias", parameter(ConstantInit(0.0), (self.axis,)), shape)
        return layer_norm(x, scale, bias, self.config.norm_epsilon)


NORMS: Mapping[str, Any] = {
    "rms": RMSNorm,
    "rms_plus_one": RMSNormPlusOne,
    "layer": LayerNorm,
    "layer_no_bias": functools.partial(LayerNorm, has_bias=False),
}


class Identity(nn.Module):
    """Stands for a norm, or another part, that a model does not have."""

    def __call__(self, x: Float[Array, "*shape e"]) -> Float[Array, "*shape e"]:
        return x


def make_norm(config: T5Fields, **axis: str) -> nn.Module:
    """Returns a new norm of the kind that the configuration names.

    Args:
        axis: `axis=` the logical name of the dimension that it normalises, if it is not "embed".
    """
    norm: nn.Module = NORMS[config.norm](config, **axis)
    return norm


def make_final_norm(config: T5Fields) -> nn.Module:
    """Returns the norm at the end of a stack."""
    is_normed = "sum" in NORM_PLACEMENTS[config.norm_placement]
    return Identity() if is_normed else make_norm(config)


class Sublayers(nn.Module):
    """A layer as a sequence of sublayers on a residual stream: norms, dropout and additions.

    A subclass calls `add_sublayers` in `setup`, and surrounds what each sublayer computes by
    `sublayer_input` and `add_output`.

    Parameters:
        pre_NAME_layer_norm and post_NAME_layer_norm of each sublayer, as the placement says.
    """

    config: T5Fields

    def add_sublayers(self, *names: str, normalised: Collection[str] = ()) -> None:
        """Makes the norms and the dropout of the sublayers with these names.

        Args:
            normalised: those whose input is normalised already, which get no norm of it.
        """
        for name in names:
            for where in NORM_PLACEMENTS[self.config.norm_placement]:
                is_made = where != "pre" or name not in normalised
                norm = make_norm(self.config) if is_made else Identity()
                setattr(self, _norm_name(where, name), norm)
            setattr(self, f"post_{name}_dropout", Dropout())

    def sublayer_input(self, name: str, x: Float[Array, "b l e"]) -> Float[Array, "b l e"]:
        """Returns what a sublayer reads of the residual stream."""
        return self._normalised("pre", name, x)

    def add_output(
        self,
        name: str,
        x: Float[Array, "b l e"],
        output: Float[Array, "b l e"],
        dropout_rate: Number | None,
    ) -> Float[Array, "b l e"]:
        """Returns the residual stream with the output of a sublayer."""
        output = self._normalised("post", name, output)
        x = x + getattr(self, f"post_{name}_dropout")(output, dropout_rate)
        return self._normalised("sum", name, x)

    def _normalised(self, where: str, name: str, x: Float[Array, "b l e"]) -> Float[Array, "b l e"]:
        if where not in NORM_PLACEMENTS[self.config.norm_placement]:
            return x
        normed: Float[Array, "b l e"] = getattr(self, _norm_name(where, name))(x)
        return normed


def _norm_name(where: str, sublayer: str) -> str:
    return f"{_PREFIXES[where]}_{sublayer}_layer_norm"

"""Norms, and where in a layer they stand: the parts that `T5Config.norm` and
`T5Config.norm_placement` name.

To add a norm, write a module and a row of `NORMS`; for a placement, a row of `NORM_PLACEMENTS`.
"""

from collections.abc import Mapping
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
# output is added to the residual stream.
NORM_PLACEMENTS: Mapping[str, tuple[str, ...]] = {"pre": ("pre",), "sandwich": ("pre", "post")}


def rms_norm(
    x: Float[Array, "*shape e"], scale: Float[Array, "e"], epsilon: float
) -> Float[Array, "*shape e"]:
    """Divides by the root mean square, computed in float32, then scales; no mean, no bias.

    >>> rms_norm(jnp.array([3.0, -3.0]), jnp.array([1.0, 2.0]), 1e-6).round(3).tolist()
    [1.0, -2.0]
    """
    normed = _normed(x, epsilon).astype(x.dtype)
    return normed * jnp.expand_dims(scale.astype(x.dtype), tuple(range(x.ndim - 1)))


def _normed(x: Float[Array, "*shape e"], epsilon: float) -> Float[Array, "*shape e"]:
    wide = x.astype(jnp.float32)
    mean_of_squares = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return wide * jax.lax.rsqrt(mean_of_squares + epsilon)


class RMSNorm(nn.Module):
    """`rms_norm` with its scale.

    Parameters:
        scale [embed], ones.
    """

    config: T5Fields

    @nn.compact
    def __call__(self, x: Float[Array, "*shape e"]) -> Float[Array, "*shape e"]:
        scale: Any = self.param("scale", parameter(ConstantInit(1.0), ("embed",)), (x.shape[-1],))
        return rms_norm(x, scale, self.config.norm_epsilon)


class RMSNormPlusOne(nn.Module):
    """RMS norm that scales by 1 plus a weight, all in float32.

    Parameters:
        scale [embed], zeros.

    Source: google-deepmind/gemma@main:gemma/gm/nn/_layers.py, RMSNorm.
    """

    config: T5Fields

    @nn.compact
    def __call__(self, x: Float[Array, "*shape e"]) -> Float[Array, "*shape e"]:
        scale: Any = self.param("scale", parameter(ConstantInit(0.0), ("embed",)), (x.shape[-1],))
        wide = jnp.expand_dims(1.0 + scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
        return (_normed(x, self.config.norm_epsilon) * wide).astype(x.dtype)


NORMS: Mapping[str, Any] = {"rms": RMSNorm, "rms_plus_one": RMSNormPlusOne}


def make_norm(config: T5Fields) -> nn.Module:
    """Returns a new norm of the kind that the configuration names."""
    norm: nn.Module = NORMS[config.norm](config)
    return norm


class Sublayers(nn.Module):
    """A layer as a sequence of sublayers on a residual stream: norms, dropout and additions.

    A subclass calls `add_sublayers` in `setup`, and surrounds what each sublayer computes by
    `sublayer_input` and `add_output`.

    Parameters:
        pre_NAME_layer_norm and, if the placement says so, post_NAME_layer_norm of each sublayer.
    """

    config: T5Fields

    def add_sublayers(self, *names: str) -> None:
        """Makes the norms and the dropout of the sublayers with these names."""
        for name in names:
            for where in NORM_PLACEMENTS[self.config.norm_placement]:
                setattr(self, f"{where}_{name}_layer_norm", make_norm(self.config))
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
        return x + getattr(self, f"post_{name}_dropout")(output, dropout_rate)

    def _normalised(self, where: str, name: str, x: Float[Array, "b l e"]) -> Float[Array, "b l e"]:
        if where not in NORM_PLACEMENTS[self.config.norm_placement]:
            return x
        normed: Float[Array, "b l e"] = getattr(self, f"{where}_{name}_layer_norm")(x)
        return normed

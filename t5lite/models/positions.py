"""How tokens know their positions: the parts that `T5Config.positions` names.

To add a scheme, write a subclass of `PositionScheme` and a row of `POSITIONS`.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from t5lite.models.config_fields import T5Fields
from t5lite.models.masks import Positions
from t5lite.models.relative_bias import RelativePositionBias


@dataclasses.dataclass(frozen=True)
class PositionScheme:
    """No positions at all, and the hooks through which a scheme acts on self-attention."""

    def stack_bias(self, config: T5Fields, *, bidirectional: bool) -> RelativePositionBias | None:
        """Returns the module `relpos_bias` of a stack, which all its layers share."""
        return None

    def layer_bias(self, config: T5Fields, *, bidirectional: bool) -> RelativePositionBias | None:
        """Returns the module `relpos_bias` of each layer."""
        return None

    def placed(
        self, config: T5Fields, heads: Float[Array, "b l h d"], positions: Positions
    ) -> Float[Array, "b l h d"]:
        """Returns queries or keys that know their positions; None is 0, 1, ..."""
        return heads


@dataclasses.dataclass(frozen=True)
class SharedBias(PositionScheme):
    """T5: one relative bias for all layers of a stack."""

    def stack_bias(self, config: T5Fields, *, bidirectional: bool) -> RelativePositionBias:
        return RelativePositionBias(config, bidirectional=bidirectional)


@dataclasses.dataclass(frozen=True)
class LayerBias(PositionScheme):
    """umT5: a relative bias of its own for each layer."""

    def layer_bias(self, config: T5Fields, *, bidirectional: bool) -> RelativePositionBias:
        return RelativePositionBias(config, bidirectional=bidirectional)


@dataclasses.dataclass(frozen=True)
class Rotary(PositionScheme):
    """RoFormer, Llama: queries and keys rotated by their positions."""

    def placed(
        self, config: T5Fields, heads: Float[Array, "b l h d"], positions: Positions
    ) -> Float[Array, "b l h d"]:
        positions = np.arange(heads.shape[1]) if positions is None else positions
        return rotate(heads, positions, config.rotary_base)


POSITIONS: Mapping[str, PositionScheme] = {
    "shared_bias": SharedBias(),
    "layer_bias": LayerBias(),
    "rotary": Rotary(),
}


def rotate(
    x: Float[Array, "b l h d"], positions: Positions, base: float
) -> Float[Array, "b l h d"]:
    """Rotates each pair (i, i + d / 2) of a head by position * base^(-2 i / d).

    The product of a rotated query and key depends on their distance alone.

    >>> rotated = rotate(jnp.ones((1, 2, 1, 2)), np.arange(2), 10000.0)
    >>> [[f"{number:.3f}" for number in row] for row in rotated[0, :, 0].tolist()]
    [['1.000', '1.000'], ['-0.301', '1.382']]

    Source: Su et al., "RoFormer", section 3.2.2; the pairing is Llama's.
    """
    half = x.shape[-1] // 2
    speeds = base ** (-np.arange(half, dtype=np.float32) / half)
    angles = jnp.asarray(positions, jnp.float32)[:, None] * jnp.asarray(speeds)[None]
    sin, cos = (f(angles)[None, :, None, :] for f in (jnp.sin, jnp.cos))
    first, second = (part.astype(jnp.float32) for part in (x[..., :half], x[..., half:]))
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)

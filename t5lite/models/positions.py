"""How tokens know their positions: the parts that `T5Config.positions` names.

To add a scheme, write a subclass of `PositionScheme` and a row of `POSITIONS`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t5lite.core.errors import UserError
from t5lite.core.fields import field_name
from t5lite.models.adapters import Axis
from t5lite.models.config_fields import T5Fields
from t5lite.models.embedding import LookupTable
from t5lite.models.masks import Positions
from t5lite.models.relative_bias import RelativePositionBias

# Radians that a token turns each pair of a head by, float32 [d / 2].
Speeds = Any


@dataclasses.dataclass(frozen=True)
class PositionScheme:
    """No positions at all, and the hooks through which a scheme acts on self-attention."""

    def stack_bias(self, config: T5Fields, *, bidirectional: bool) -> RelativePositionBias | None:
        """Returns the module `relpos_bias` of a stack, which all its layers share."""
        return None

    def layer_bias(self, config: T5Fields, *, bidirectional: bool) -> RelativePositionBias | None:
        """Returns the module `relpos_bias` of each layer."""
        return None

    def embedder(self, config: T5Fields) -> LookupTable | None:
        """Returns the module `position_embedder` of a stack, whose vectors are added to its
        input.
        """
        return None

    def placed(
        self, config: T5Fields, heads: Float[Array, "b l h d"], positions: Positions
    ) -> Float[Array, "b l h d"]:
        """Returns queries or keys that know their positions.

        Args:
            positions: [l], or [b, l] with merged attention; None is 0, 1, ...
        """
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
        return rotate(heads, positions, rotary_speeds(config, heads.shape[-1]))


@dataclasses.dataclass(frozen=True)
class Learned(PositionScheme):
    """BERT: a vector for each position, which starts again at 0 in every packed example."""

    def embedder(self, config: T5Fields) -> LookupTable:
        assert config.max_positions is not None, "T5Config requires it"
        return LookupTable(config, Axis("positions", config.max_positions))


POSITIONS: Mapping[str, PositionScheme] = {
    "shared_bias": SharedBias(),
    "layer_bias": LayerBias(),
    "rotary": Rotary(),
    "learned": Learned(),
}

# What `T5Config.cross_positions` names.
CROSS_POSITIONS = ("none", "continued")


def check_row_length(config: T5Fields, length: int) -> None:
    """Raises a UserError if a row has more tokens than there are learned positions."""
    if config.max_positions is not None and length > config.max_positions:
        raise UserError(
            f"{field_name(config, 'max_positions')} must be at least the tokens of a row "
            f"({length}), got {config.max_positions}; make the objective's lengths shorter, or "
            "grow encoder/position_embedder/embedding with train.restore_rules"
        )


def positions_in_examples(segment_ids: Int[Array, "b l"]) -> Int[Array, "b l"]:
    """Returns the position of each token in its example.

    >>> positions_in_examples(jnp.array([[1, 1, 2, 2, 2, 0]])).tolist()
    [[0, 1, 0, 1, 2, 0]]
    """
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return index - jax.lax.cummax(jnp.where(segment_ids != before, index, 0), axis=1)


def _linear(speeds: Speeds, factor: float) -> Speeds:
    """Slows all rotations, as if positions were divided by `factor`."""
    return speeds / np.float32(factor)


def _llama3(
    speeds: Speeds,
    factor: float,
    low_frequency_factor: float,
    high_frequency_factor: float,
    original_length: float,
) -> Speeds:
    """Slows rotations that take over `original_length / low_frequency_factor` tokens by `factor`.

    Those that take under `original_length / high_frequency_factor` keep their speed, the others
    get a mean of both speeds, weighted by how often they turn within the original length.

    Source: huggingface/transformers@v5.24:src/transformers/modeling_rope_utils.py,
    _compute_llama3_parameters.
    """
    turns = original_length * speeds / (2 * np.pi)
    share = (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor)
    share = np.clip(share, 0, 1)
    return (share * speeds + (1 - share) * speeds / factor).astype(np.float32)


# How `T5Config.rotary_scaling` changes the speeds of rotations, by name; its numbers are arguments.
ROTARY_SCALINGS: Mapping[str, Callable[..., Speeds]] = {"linear": _linear, "llama3": _llama3}


def scaling_numbers(name: str) -> tuple[str, ...]:
    """Returns the names of the numbers of a scaling.

    >>> scaling_numbers("linear")
    ('factor',)
    """
    return tuple(inspect.signature(ROTARY_SCALINGS[name]).parameters)[1:]


def rotary_speeds(config: T5Fields, head_dim: int) -> Speeds:
    """Returns by how many radians a token turns each pair (i, i + d / 2): base^(-2 i / d), scaled.

    >>> config = T5Fields(vocab_size=384, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
    ...     rotary_scaling=("linear", 2.0))
    >>> rotary_speeds(config, 4).tolist()
    [0.5, 0.004999999888241291]
    """
    half = head_dim // 2
    speeds = config.rotary_base ** (-np.arange(half, dtype=np.float32) / half)
    if not config.rotary_scaling:
        return speeds
    name, *numbers = config.rotary_scaling
    return ROTARY_SCALINGS[name](speeds, *numbers)


def rotate(
    x: Float[Array, "b l h d"], positions: Positions, speeds: Speeds
) -> Float[Array, "b l h d"]:
    """Rotates each pair (i, i + d / 2) of a head by position * speeds[i].

    The product of a rotated query and key depends on their distance alone.

    >>> rotated = rotate(jnp.ones((1, 2, 1, 2)), np.arange(2), np.ones(1, np.float32))
    >>> [[f"{number:.3f}" for number in row] for row in rotated[0, :, 0].tolist()]
    [['1.000', '1.000'], ['-0.301', '1.382']]

    Source: Su et al., "RoFormer", section 3.2.2; the pairing is Llama's.
    """
    half = x.shape[-1] // 2
    turns = jnp.asarray(positions, jnp.float32)
    if turns.ndim == 1:
        angles = turns[:, None] * jnp.asarray(speeds)[None]
        sin, cos = (f(angles)[None, :, None, :] for f in (jnp.sin, jnp.cos))
    else:
        angles = turns[:, :, None] * jnp.asarray(speeds)[None, None]
        sin, cos = (f(angles)[:, :, None, :] for f in (jnp.sin, jnp.cos))
    first, second = (part.astype(jnp.float32) for part in (x[..., :half], x[..., half:]))
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)

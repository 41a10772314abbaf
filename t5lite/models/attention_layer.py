"""Multi-head attention with its linear maps: no biases, and positions as the configuration says."""

from typing import NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Key

from t5lite.core.named import named
from t5lite.core.numbers import Number
from t5lite.models.adapters import Axis
from t5lite.models.attention import ATTENTION, AttentionFunction, prepared
from t5lite.models.config_fields import T5Fields
from t5lite.models.initializers import ScaledInit
from t5lite.models.linear import LinearMap
from t5lite.models.masks import AttentionMask, Positions
from t5lite.models.positions import POSITIONS
from t5lite.models.relative_bias import AttentionBias


class KeysValues(NamedTuple):
    """What queries attend to; a head of it may serve several query heads."""

    key: Float[Array, "b k g d"]
    value: Float[Array, "b k g d"]


class AttentionContext(NamedTuple):
    """Mask and bias of an attention, as the attention function takes them."""

    mask: AttentionMask
    bias: AttentionBias | None = None


def attention_function(config: T5Fields) -> AttentionFunction:
    """Returns the implementation that the configuration names."""
    return named("T5Config.attention", config.attention, ATTENTION)


def prepared_context(
    config: T5Fields,
    mask: AttentionMask,
    bias: AttentionBias | None,
    query_length: int,
    key_length: int,
) -> AttentionContext:
    """Returns the context that all layers of a stack share."""
    function = attention_function(config)
    return AttentionContext(*prepared(function, mask, bias, query_length, key_length))


class Attention(nn.Module):
    """Attention of queries made from one sequence to keys and values made from one.

    Parameters:
        query/kernel [embed, heads, kv], normal with variance 1 / (embed * kv).
        key/kernel, value/kernel [embed, heads, kv], normal with variance 1 / embed.
        out/kernel [heads, kv, embed], normal with variance 1 / (heads * kv).

    Args:
        full_name: prefix of the maps' names, such as `decoder/layers/self_attention`.
        has_positions: whether queries and keys have positions in one sequence, as opposed to
            cross-attention.
    """

    config: T5Fields
    full_name: str
    has_positions: bool = True

    def setup(self) -> None:
        config = self.config
        embed = Axis("embed", config.embed_dim)
        kv = Axis("kv", config.head_dim)

        def heads(name: str, count: int, scale: float) -> LinearMap:
            return LinearMap(
                "ble,ehd->blhd",
                inputs=(embed,),
                outputs=(Axis("heads", count), kv),
                initializer=ScaledInit(scale, "normal", in_axes=(0,), out_axes=(1, 2)),
                full_name=f"{self.full_name}/{name}",
                adapters=config.adapters,
            )

        self.query = heads("query", config.num_heads, 1.0 / config.head_dim)
        self.key = heads("key", config.kv_heads, 1.0)
        self.value = heads("value", config.kv_heads, 1.0)
        self.out = LinearMap(
            "blhd,hde->ble",
            inputs=(Axis("heads", config.num_heads), kv),
            outputs=(embed,),
            initializer=ScaledInit(1.0, "normal", in_axes=(0, 1), out_axes=(2,)),
            full_name=f"{self.full_name}/out",
            adapters=config.adapters,
        )

    def queries(
        self, x: Float[Array, "b q e"], positions: Positions = None
    ) -> Float[Array, "b q h d"]:
        """Returns the queries of `x`, whose tokens have these positions; None is 0, 1, ..."""
        return self._placed(_by_head(self.query(x)), positions)

    def keys_values(self, source: Float[Array, "b k e"], positions: Positions = None) -> KeysValues:
        """Returns the keys and values of `source`, whose tokens have these positions."""
        key, value = (_by_head(part(source), "key_length") for part in (self.key, self.value))
        return KeysValues(self._placed(key, positions), value)

    def __call__(
        self,
        query: Float[Array, "b q h d"],
        source: KeysValues,
        context: AttentionContext,
        *,
        dropout_rate: Number | None,
    ) -> Float[Array, "b q h d"]:
        """Returns for each query and head the average of the values that it attends to."""
        rng = None if dropout_rate is None else self.make_rng("dropout")
        config = self.config
        function = attention_function(self.config)

        def attended(
            query: Float[Array, "b q h d"],
            source: KeysValues,
            context: AttentionContext,
            dropout_rate: Number | None,
            rng: Key[Array, ""] | None,
        ) -> Float[Array, "b q h d"]:
            return function(
                query,
                source.key,
                source.value,
                mask=context.mask,
                bias=context.bias,
                scale=config.attention_scale,
                soft_cap=config.attention_soft_cap,
                dropout_rate=dropout_rate,
                dropout_key=rng,
            )

        if config.remat == "attention":
            attended = jax.checkpoint(attended)
        return attended(query, source, context, dropout_rate, rng)

    def _placed(
        self, heads: Float[Array, "b l h d"], positions: Positions
    ) -> Float[Array, "b l h d"]:
        if not self.has_positions:
            return heads
        return POSITIONS[self.config.positions].placed(self.config, heads, positions)


def _by_head(x: Float[Array, "b l h d"], length: str = "length") -> Float[Array, "b l h d"]:
    return nn.with_logical_constraint(x, ("batch", length, "heads", "kv"))

"""Multi-head attention with its linear maps, and positions as the configuration says."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from t5lite.core.named import named
from t5lite.core.numbers import Number
from t5lite.models.adapters import Axis
from t5lite.models.attention import ATTENTION, AttentionFunction, prepared
from t5lite.models.config_fields import T5Fields
from t5lite.models.initializers import ScaledInit
from t5lite.models.linear import LinearMap, add_parameter
from t5lite.models.masks import AttentionMask, Positions
from t5lite.models.norms import make_norm
from t5lite.models.positions import POSITIONS
from t5lite.models.relative_bias import AttentionBias
from t5lite.models.token_adapters import AttentionSite, attention_adapters


class KeysValues(NamedTuple):
    """What queries attend to; a head of it may serve several query heads."""

    key: Float[Array, "b k g d"]
    value: Float[Array, "b k g d"]

    def after(self, memory: "KeysValues") -> "KeysValues":
        """Returns those of a memory, then these."""
        pairs = zip(memory, self, strict=True)
        return KeysValues(*(jnp.concatenate(pair, axis=1) for pair in pairs))


class AttentionContext(NamedTuple):
    """What the layers of a stack know of a batch.

    Args:
        mask, bias: as the attention function takes them.
        positions: of queries and own keys, [l] or, if they differ between rows, [b, l]; None is
            0, 1, ...
        source_positions: of the encoder's output in cross-attention, where it has any.
        in_examples: positions of queries in their examples, [l] or [b, l], if adapters need them.
    """

    mask: AttentionMask
    bias: AttentionBias | None = None
    positions: Positions = None
    source_positions: Positions = None
    in_examples: Positions = None


def attention_function(config: T5Fields) -> AttentionFunction:
    """Returns the implementation that the configuration names."""
    return named("T5Config.attention", config.attention, ATTENTION)


def prepared_context(
    config: T5Fields,
    mask: AttentionMask,
    bias: AttentionBias | None,
    query_length: int,
    key_length: int,
    prefix: int = 0,
) -> AttentionContext:
    """Returns the context that all layers of a stack share.

    Args:
        mask, key_length: without the keys of a prefix.
        bias: with them.
        prefix: number of these keys.
    """
    mask = mask.with_shared_keys(prefix, key_length)
    function = attention_function(config)
    return AttentionContext(*prepared(function, mask, bias, query_length, key_length + prefix))


class Attention(nn.Module):
    """Attention of queries made from one sequence to keys and values made from one.

    Parameters:
        query/kernel [embed, heads, kv], normal with variance 1 / (embed * kv).
        key/kernel, value/kernel [embed, heads, kv], normal with variance 1 / embed; embed is the
        encoder's in cross-attention.
        out/kernel [heads, kv, embed], normal with variance 1 / (heads * kv).
        query/bias, ... with `linear_bias`, zeros.
        query_norm/scale, key_norm/scale [kv] with `qk_norm`, but not in cross-attention.
        What the attached adapters add.

    Args:
        full_name: prefix of the maps' names, such as `decoder/layers/self_attention`.
        is_cross: whether keys and values are made from the output of the encoder.
    """

    config: T5Fields
    full_name: str
    is_cross: bool = False

    def setup(self) -> None:
        config = self.config
        embed = Axis("embed", config.embed_dim)
        source = embed
        if self.is_cross:
            source = Axis("embed", config.encoder_config().embed_dim)
        kv = Axis("kv", config.head_dim)

        def heads(name: str, of: Axis, count: int, scale: float) -> LinearMap:
            return LinearMap(
                "ble,ehd->blhd",
                inputs=(of,),
                outputs=(Axis("heads", count), kv),
                initializer=ScaledInit(scale, "normal", in_axes=(0,), out_axes=(1, 2)),
                full_name=f"{self.full_name}/{name}",
                adapters=config.adapters,
                has_bias=config.linear_bias,
            )

        self.query = heads("query", embed, config.num_heads, 1.0 / config.head_dim)
        self.key = heads("key", source, config.kv_heads, 1.0)
        self.value = heads("value", source, config.kv_heads, 1.0)
        self.has_norms = config.qk_norm and not self.is_cross
        if self.has_norms:
            self.query_norm = make_norm(config, axis="kv")
            self.key_norm = make_norm(config, axis="kv")
        self.out = LinearMap(
            "blhd,hde->ble",
            inputs=(Axis("heads", config.num_heads), kv),
            outputs=(embed,),
            initializer=ScaledInit(1.0, "normal", in_axes=(0, 1), out_axes=(2,)),
            full_name=f"{self.full_name}/out",
            adapters=config.adapters,
            has_bias=config.linear_bias,
        )
        site = AttentionSite(
            name=self.full_name,
            heads=Axis("heads", config.kv_heads),
            kv=kv,
            parameter=functools.partial(add_parameter, self),
        )
        attached = attention_adapters(config.adapters, self.full_name)
        self.prefixes = [adapter.keys_values(site) for adapter in attached]

    def queries(
        self, x: Float[Array, "b q e"], positions: Positions = None
    ) -> Float[Array, "b q h d"]:
        """Returns the queries of `x`, whose tokens have these positions; None is 0, 1, ..."""
        queries = _by_head(self.query(x))
        return self._placed(self.query_norm(queries) if self.has_norms else queries, positions)

    def keys_values(self, source: Float[Array, "b k e"], positions: Positions = None) -> KeysValues:
        """Returns the keys and values of `source`, whose tokens have these positions."""
        key, value = self.memory(source)
        return KeysValues(self._placed(key, positions), value)

    def memory(self, source: Float[Array, "b k e"]) -> KeysValues:
        """Returns the keys and values of `source`, a sequence other than the queries'."""
        key, value = (_by_head(part(source), "key_length") for part in (self.key, self.value))
        return KeysValues(self.key_norm(key) if self.has_norms else key, value)

    def prefix(self, rows: int) -> KeysValues | None:
        """Returns the keys and values of adapters for so many rows; None if there are none."""
        if not self.prefixes:
            return None
        dtype = self.config.compute_dtype
        key, value = (
            jnp.concatenate(parts)[None].astype(dtype) for parts in zip(*self.prefixes, strict=True)
        )
        # They are the tokens before position 0, and all turned alike: PEFT turns none of them, and
        # counts positions from the first key of the prefix.
        count = key.shape[1]
        key = self._placed(key, np.full(count, -count))
        made = (jnp.broadcast_to(part, (rows, *part.shape[1:])) for part in (key, value))
        return KeysValues(*(_by_head(part, "key_length") for part in made))

    def after_prefix(self, source: KeysValues) -> KeysValues:
        """Returns the keys and values of adapters, then these."""
        prefix = self.prefix(source.key.shape[0])
        return source if prefix is None else source.after(prefix)

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
        if self.is_cross and self.config.cross_positions == "none":
            return heads
        return POSITIONS[self.config.positions].placed(self.config, heads, positions)


def _by_head(x: Float[Array, "b l h d"], length: str = "length") -> Float[Array, "b l h d"]:
    return nn.with_logical_constraint(x, ("batch", length, "heads", "kv"))

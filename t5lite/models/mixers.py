"""How encoder layers mix tokens: the parts that `T5Config.encoder_attention` names.

To add a mixer, write a subclass of `Mixer` and a row of `MIXERS`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Int

from t5lite.core.numbers import Number
from t5lite.models.attention_layer import Attention, AttentionContext, prepared_context
from t5lite.models.config_fields import T5Fields
from t5lite.models.long_attention import LongContext, long_attention, long_context
from t5lite.models.masks import AttentionMask, Window
from t5lite.models.norms import make_norm
from t5lite.models.positions import positions_in_examples
from t5lite.models.relative_bias import AttentionBias, RelativePositionBias
from t5lite.models.token_adapters import ENCODER_ATTENTION, prefix_length

# Modules by the names under which a mixer asked for them.
Parts = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Mixer:
    """Full attention, and the hooks through which others replace it."""

    def stack_parts(self, config: T5Fields) -> dict[str, nn.Module]:
        """Returns modules of the encoder, by the names that their parameters get."""
        return {}

    def layer_parts(self, config: T5Fields) -> dict[str, nn.Module]:
        """Returns modules of each layer, by the names that their parameters get."""
        return {}

    def contexts(
        self,
        config: T5Fields,
        segment_ids: Int[Array, "b l"],
        windows: Sequence[Window | None],
        relpos_bias: RelativePositionBias | None,
        parts: Parts,
    ) -> tuple[Any, ...]:
        """Returns for each window what `mix` needs to know of the batch, for all layers at once."""
        length = segment_ids.shape[1]
        prefix = prefix_length(config.adapters, ENCODER_ATTENTION)
        in_examples = positions_in_examples(segment_ids) if prefix else None
        bias: AttentionBias | None = None
        if relpos_bias is not None:
            bias = relpos_bias.with_prefix(
                relpos_bias(length), prefix, in_examples, limit=length, key_length=length
            )
        contexts = (
            prepared_context(
                config,
                AttentionMask(
                    query_segment_ids=segment_ids, key_segment_ids=segment_ids, window=window
                ),
                bias,
                length,
                length,
                prefix,
            )
            for window in windows
        )
        return tuple(
            context._replace(positions=in_examples, in_examples=in_examples) for context in contexts
        )

    def mix(
        self,
        attention: Attention,
        x: Float[Array, "b l e"],
        context: Any,
        bias: AttentionBias | None,
        parts: Parts,
        dropout_rate: Number | None,
    ) -> Float[Array, "b l h d"]:
        """Returns for each token and head the average of the values that it attends to.

        Args:
            context: of this layer's window.
            bias: of this layer; None if its layers share one, which is in the context.
        """
        attended: AttentionContext = context if bias is None else context._replace(bias=bias)
        positions = attended.positions
        source = attention.after_prefix(attention.keys_values(x, positions))
        queries = attention.queries(x, positions)
        return attention(queries, source, attended, dropout_rate=dropout_rate)


@dataclasses.dataclass(frozen=True)
class LocalMixer(Mixer):
    """LongT5's attention to tokens nearby."""

    def contexts(
        self,
        config: T5Fields,
        segment_ids: Int[Array, "b l"],
        windows: Sequence[Window | None],
        relpos_bias: RelativePositionBias | None,
        parts: Parts,
    ) -> tuple[LongContext, ...]:
        assert relpos_bias is not None, "T5Config requires a shared bias"
        return (long_context(config, segment_ids, relpos_bias, parts.get("side_relpos_bias")),)

    def mix(
        self,
        attention: Attention,
        x: Float[Array, "b l e"],
        context: Any,
        bias: AttentionBias | None,
        parts: Parts,
        dropout_rate: Number | None,
    ) -> Float[Array, "b l h d"]:
        norm = parts.get("global_layer_norm")
        return long_attention(attention, norm, x, context, dropout_rate=dropout_rate)


@dataclasses.dataclass(frozen=True)
class TransientGlobalMixer(LocalMixer):
    """LongT5's attention to tokens nearby and to a summary of each block of tokens.

    Parameters:
        side_relpos_bias/rel_embedding of the encoder; global_layer_norm/scale of each layer.
    """

    def stack_parts(self, config: T5Fields) -> dict[str, nn.Module]:
        return {"side_relpos_bias": RelativePositionBias(config, bidirectional=True)}

    def layer_parts(self, config: T5Fields) -> dict[str, nn.Module]:
        return {"global_layer_norm": make_norm(config)}


MIXERS: Mapping[str, Mixer] = {
    "full": Mixer(),
    "local": LocalMixer(),
    "transient_global": TransientGlobalMixer(),
}

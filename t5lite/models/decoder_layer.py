"""One layer of the decoder, on whole sequences and on new tokens after a cache."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from t5lite.core.numbers import Number
from t5lite.models.attention_layer import Attention, AttentionContext
from t5lite.models.cache import ByHead, LayerCache, by_head
from t5lite.models.config import T5Config
from t5lite.models.masks import Positions
from t5lite.models.norms import Sublayers
from t5lite.models.positions import POSITIONS
from t5lite.models.stack import LAYER_OUTPUTS, Stream, constrained, feed_forward, window_pattern
from t5lite.models.token_adapters import CROSS_ATTENTION, DECODER_ATTENTION, prefix_length


class Incremental(NamedTuple):
    """Inputs of a layer for new tokens after a cache.

    Args:
        cached: the layer's part of the cache.
        start: slot of the first new token.
        key_positions: of all tokens, the new ones included.
        alternatives: whether the new tokens continue different hypotheses and do not see each
            other.
    """

    cached: LayerCache
    start: Int[Array, ""]
    key_positions: Positions
    alternatives: bool


class DecoderLayer(Sublayers):
    """Self-attention, cross-attention if there is an encoder, and feed-forward.

    Parameters:
        self_attention, encoder_decoder_attention if there is an encoder, mlp, and the norms of
        these sublayers; relpos_bias with positions "layer_bias". With `merged_attention` there is
        no encoder_decoder_attention.

    Args:
        kind: which of the stack's windows is this layer's.
    """

    config: T5Config
    kind: int = 0

    def setup(self) -> None:
        config = self.config
        cross = ("cross_attention",) if config.has_cross_attention else ()
        self.add_sublayers("self_attention", *cross, "mlp")
        windows = window_pattern(config.decoder_windows, config.num_decoder_layers).windows
        of_window = config.windowed_config(windows[self.kind])
        self.self_attention = Attention(of_window, DECODER_ATTENTION)
        self.relpos_bias = POSITIONS[config.positions].layer_bias(config, bidirectional=False)
        if config.has_cross_attention:
            self.encoder_decoder_attention = Attention(
                config.windowed_config(None), CROSS_ATTENTION, is_cross=True
            )
        self.mlp = feed_forward(config, "decoder/layers/mlp")

    def memory(
        self,
        rows: int,
        encoded: Float[Array, "b source source_embed"] | None,
        positions: Positions,
    ) -> tuple[ByHead | None, ByHead | None]:
        """Returns the keys and values before those of tokens, and those of cross-attention.

        Args:
            positions: of what was encoded.
        """
        attention = self.self_attention
        if self.config.merged_attention:
            assert encoded is not None, "no encoder outputs for merged attention"
            return by_head(attention.after_prefix(attention.memory(encoded))), None
        prefix = attention.prefix(rows)
        own = None if prefix is None else by_head(prefix)
        if encoded is None:
            return own, None
        cross = self.encoder_decoder_attention
        return own, by_head(cross.after_prefix(cross.keys_values(encoded, positions)))

    def __call__(
        self,
        x: Stream,
        contexts: tuple[AttentionContext, ...],
        encoded: Float[Array, "b source source_embed"] | None,
        cross_context: AttentionContext | None,
        is_token: Bool[Array, "b q"],
        dropout_rate: Number | None,
        incremental: Incremental | None = None,
    ) -> tuple[Stream, ByHead | None]:
        """Returns the residual stream and, after a cache, its keys and values with the new ones."""
        x, own = self._self_attended(x, contexts[self.kind], encoded, dropout_rate, incremental)
        if cross_context is not None:
            cached = None if incremental is None else incremental.cached.encoded
            x = self._cross_attended(x, encoded, cached, cross_context, dropout_rate)
        normed = self.sublayer_input("mlp", x)
        if incremental is not None and incremental.alternatives:
            # Each in a row of its own, so that they do not compete for the slots of experts.
            alone = normed.reshape(-1, 1, x.shape[2])
            y = self.mlp(alone, is_token.reshape(-1, 1), dropout_rate=dropout_rate)
            y = y.reshape(x.shape)
        else:
            y = self.mlp(normed, is_token, dropout_rate=dropout_rate)
        x = constrained(self.add_output("mlp", x, y, dropout_rate))
        self.sow(LAYER_OUTPUTS, "output", x)
        return x, own

    def _self_attended(
        self,
        x: Stream,
        context: AttentionContext,
        encoded: Float[Array, "b source source_embed"] | None,
        dropout_rate: Number | None,
        incremental: Incremental | None,
    ) -> tuple[Stream, ByHead | None]:
        attention = self.self_attention
        normed = self.sublayer_input("self_attention", x)
        source = attention.keys_values(normed, context.positions)
        own = None
        if incremental is not None:
            own = incremental.cached.own.with_new(source, incremental.start)
            source = own.read()
        else:
            if self.config.merged_attention:
                assert encoded is not None, "no encoder outputs for merged attention"
                source = source.after(attention.memory(encoded))
            source = attention.after_prefix(source)
        if self.relpos_bias is not None:
            prefix = prefix_length(self.config.adapters, DECODER_ATTENTION)
            length = source.key.shape[1] - prefix
            key_positions = None if incremental is None else incremental.key_positions
            bias = self.relpos_bias.with_prefix(
                self.relpos_bias(length, context.positions, key_positions),
                prefix,
                context.in_examples,
                limit=length,
                key_length=length,
            )
            context = context._replace(bias=bias)
        queries = attention.queries(normed, context.positions)
        y = attention(queries, source, context, dropout_rate=dropout_rate)
        return self.add_output("self_attention", x, attention.out(y), dropout_rate), own

    def _cross_attended(
        self,
        x: Stream,
        encoded: Float[Array, "b source source_embed"] | None,
        cached: ByHead | None,
        context: AttentionContext,
        dropout_rate: Number | None,
    ) -> Stream:
        attention = self.encoder_decoder_attention
        if cached is None:
            assert encoded is not None, "neither encoder outputs nor their keys and values"
            source = attention.keys_values(encoded, context.source_positions)
            source = attention.after_prefix(source)
        else:
            source = cached.read()
        queries = attention.queries(self.sublayer_input("cross_attention", x), context.positions)
        y = attention(queries, source, context, dropout_rate=dropout_rate)
        return self.add_output("cross_attention", x, attention.out(y), dropout_rate)

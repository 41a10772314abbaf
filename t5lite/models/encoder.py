"""The encoder: every token sees the whole input, or with long attention what is near it."""

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.numbers import Number
from t5lite.models.attention import Attention
from t5lite.models.config import T5Config
from t5lite.models.layers import Dropout, RMSNorm
from t5lite.models.long_attention import SelfContext, long_attention, long_context
from t5lite.models.masks import segment_mask
from t5lite.models.positions import RelativePositionBias
from t5lite.models.stack import Stream, constrained, feed_forward, scanned_layers


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each on the normed stream and added to it.

    Parameters:
        pre_attention_layer_norm, attention, pre_mlp_layer_norm, mlp; relpos_bias where each layer
        has its own; global_layer_norm/scale [embed] with transient global attention.

    Differs from T5X in the last name, which there is `attention/T5LayerNorm_0`.
    """

    config: T5Config

    def setup(self) -> None:
        config = self.config
        self.pre_attention_layer_norm, self.pre_mlp_layer_norm = RMSNorm(config), RMSNorm(config)
        self.attention, self.mlp = Attention(config), feed_forward(config)
        if config.positions == "layer_bias":
            self.relpos_bias = RelativePositionBias(config, bidirectional=True)
        if config.encoder_attention == "transient_global":
            self.global_layer_norm = RMSNorm(config)
        self.post_attention_dropout, self.post_mlp_dropout = Dropout(), Dropout()

    def __call__(
        self,
        x: Stream,
        context: SelfContext,
        is_token: Bool[Array, "b l"],
        dropout_rate: Number | None,
    ) -> tuple[Stream, None]:
        attended = self._attended(self.pre_attention_layer_norm(x), context, dropout_rate)
        x = x + self.post_attention_dropout(self.attention.out(attended), dropout_rate)
        y = self.mlp(self.pre_mlp_layer_norm(x), is_token, dropout_rate=dropout_rate)
        x = x + self.post_mlp_dropout(y, dropout_rate)
        return constrained(x), None

    def _attended(
        self, x: Stream, context: SelfContext, dropout_rate: Number | None
    ) -> Float[Array, "b l h d"]:
        if self.config.encoder_attention != "full":
            global_norm = None if context.summed is None else self.global_layer_norm
            return long_attention(
                self.attention, global_norm, x, context, dropout_rate=dropout_rate
            )
        bias = context.bias
        if self.config.positions == "layer_bias":
            bias = self.relpos_bias(x.shape[1], x.shape[1])
        return self.attention(
            self.attention.queries(x),
            self.attention.keys_values(x),
            bias=bias,
            mask=context.mask,
            dropout_rate=dropout_rate,
        )


class Encoder(nn.Module):
    """Embedded tokens to encoded ones.

    Parameters:
        relpos_bias/rel_embedding where layers share it, side_relpos_bias/rel_embedding with
        transient global attention, layers/..., encoder_norm/scale.
    """

    config: T5Config

    def setup(self) -> None:
        config = self.config
        if config.positions == "shared_bias":
            self.relpos_bias = RelativePositionBias(config, bidirectional=True)
        if config.encoder_attention == "transient_global":
            self.side_relpos_bias = RelativePositionBias(config, bidirectional=True)
        in_axes = {"__call__": (nn.broadcast,) * 3}
        self.layers = scanned_layers(EncoderLayer, config, config.num_encoder_layers, in_axes)
        self.encoder_norm = RMSNorm(config)
        self.input_dropout, self.output_dropout = Dropout(), Dropout()

    def __call__(
        self, x: Stream, segment_ids: Int[Array, "b l"], *, dropout_rate: Number | None
    ) -> Stream:
        x = constrained(self.input_dropout(x, dropout_rate))
        x, _ = self.layers(x, self._context(segment_ids), segment_ids > 0, dropout_rate)
        return self.output_dropout(self.encoder_norm(x), dropout_rate)

    def _context(self, segment_ids: Int[Array, "b l"]) -> SelfContext:
        config, length = self.config, segment_ids.shape[1]
        if config.encoder_attention != "full":
            has_side = config.encoder_attention == "transient_global"
            side = self.side_relpos_bias if has_side else None
            return long_context(config, segment_ids, self.relpos_bias, side)
        shared = config.positions == "shared_bias"
        bias = self.relpos_bias(length, length) if shared else None
        return SelfContext(segment_mask(segment_ids, segment_ids), bias)

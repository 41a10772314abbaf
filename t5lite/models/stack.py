"""Encoder and decoder: one layer, scanned over its depth so that compile time does not grow.

The parameters of all layers are stacked along a first axis named "layers".
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from t5lite.core.numbers import Number
from t5lite.models.attention import Attention
from t5lite.models.config import REMAT_POLICIES, T5Config
from t5lite.models.feedforward import FeedForward
from t5lite.models.layers import Dropout, Embedding, Linear, RMSNorm
from t5lite.models.positions import RelativePositionBias

Stream = Float[Array, "b l e"]


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each on the normed stream and added to it."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Stream,
        mask: Bool[Array, "#b 1 l l"],
        bias: Float[Array, "1 h l l"],
        dropout_rate: Number | None,
    ) -> tuple[Stream, None]:
        config, drop = self.config, dropout_rate
        normed = RMSNorm(config, name="pre_attention_layer_norm")(x)
        y = Attention(config, name="attention")(
            normed, normed, bias=bias, mask=mask, dropout_rate=drop
        )
        x = x + Dropout(name="post_attention_dropout")(y, drop)
        y = FeedForward(config, name="mlp")(
            RMSNorm(config, name="pre_mlp_layer_norm")(x), dropout_rate=drop
        )
        x = x + Dropout(name="post_mlp_dropout")(y, drop)
        return _constrained(x), None


class DecoderLayer(nn.Module):
    """Self-attention, attention to what was encoded (if anything was), and feed-forward."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Stream,
        mask: Bool[Array, "#b 1 l l"],
        bias: Float[Array, "1 h l l"],
        encoded: Float[Array, "b k e"] | None,
        encoded_mask: Bool[Array, "#b 1 l k"] | None,
        dropout_rate: Number | None,
    ) -> tuple[Stream, None]:
        config, drop = self.config, dropout_rate
        normed = RMSNorm(config, name="pre_self_attention_layer_norm")(x)
        y = Attention(config, name="self_attention")(
            normed, normed, bias=bias, mask=mask, dropout_rate=drop
        )
        x = x + Dropout(name="post_self_attention_dropout")(y, drop)
        if encoded is not None:
            normed = RMSNorm(config, name="pre_cross_attention_layer_norm")(x)
            y = Attention(config, name="encoder_decoder_attention")(
                normed, encoded, bias=None, mask=encoded_mask, dropout_rate=drop
            )
            x = x + Dropout(name="post_cross_attention_dropout")(y, drop)
        y = FeedForward(config, name="mlp")(
            RMSNorm(config, name="pre_mlp_layer_norm")(x), dropout_rate=drop
        )
        x = x + Dropout(name="post_mlp_dropout")(y, drop)
        return _constrained(x), None


class Encoder(nn.Module):
    """Embedded tokens to encoded ones.

    Parameters:
        relpos_bias/rel_embedding, layers/..., encoder_norm/scale.
    """

    config: T5Config

    def setup(self) -> None:
        config = self.config
        self.relpos_bias = RelativePositionBias(config, bidirectional=True)
        self.layers = _scanned(EncoderLayer, config, config.num_encoder_layers, broadcast=3)
        self.encoder_norm = RMSNorm(config)
        self.input_dropout, self.output_dropout = Dropout(), Dropout()

    def __call__(
        self, x: Stream, mask: Bool[Array, "#b 1 l l"], *, dropout_rate: Number | None
    ) -> Stream:
        x = _constrained(self.input_dropout(x, dropout_rate))
        x, _ = self.layers(x, mask, self.relpos_bias(x.shape[1], x.shape[1]), dropout_rate)
        return self.output_dropout(self.encoder_norm(x), dropout_rate)


class Decoder(nn.Module):
    """Embedded tokens, and what was encoded, to the vectors that logits are made of.

    Parameters:
        relpos_bias/rel_embedding, layers/..., decoder_norm/scale, and unless logits are tied
        logits_dense/kernel [embed, vocab], truncated normal with variance 1 / embed.
    """

    config: T5Config

    def setup(self) -> None:
        config = self.config
        self.relpos_bias = RelativePositionBias(config, bidirectional=False)
        self.layers = _scanned(DecoderLayer, config, config.num_decoder_layers, broadcast=5)
        self.decoder_norm = RMSNorm(config)
        self.input_dropout, self.output_dropout = Dropout(), Dropout()
        if not config.tied_logits:
            init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
            shape = (config.embed_dim, config.vocab_size)
            self.logits_dense = Linear("ble,ev->blv", shape, ("embed", "vocab"), init)

    def __call__(
        self,
        x: Stream,
        mask: Bool[Array, "#b 1 l l"],
        encoded: Float[Array, "b k e"] | None,
        encoded_mask: Bool[Array, "#b 1 l k"] | None,
        *,
        dropout_rate: Number | None,
    ) -> Stream:
        bias = self.relpos_bias(x.shape[1], x.shape[1])
        x = _constrained(self.input_dropout(x, dropout_rate))
        x, _ = self.layers(x, mask, bias, encoded, encoded_mask, dropout_rate)
        return self.output_dropout(self.decoder_norm(x), dropout_rate)

    def logits(self, x: Stream, embedding: Embedding) -> Float[Array, "b l v"]:
        """Returns logits in float32, through `embedding` where they are tied to it."""
        tied = self.config.tied_logits
        logits = embedding.logits(x) if tied else self.logits_dense(x.astype(jnp.float32))
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))


def _constrained(x: Stream) -> Stream:
    return nn.with_logical_constraint(x, ("batch", "length", "activation_embed"))


def _scanned(layer: type[nn.Module], config: T5Config, length: int, *, broadcast: int) -> nn.Module:
    """`layer` in a loop over its stacked parameters; its last `broadcast` arguments are shared."""
    policy = REMAT_POLICIES[config.remat]
    if policy is not None:
        # The loop keeps XLA from merging the two computations, so the barrier can go.
        layer = nn.remat(layer, policy=policy, prevent_cse=False)
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * broadcast,
        length=length,
        unroll=min(config.scan_unroll, length),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(config)

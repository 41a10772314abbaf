"""The decoder: every token sees those before it, and what was encoded; at once or from a cache."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.numbers import Number
from t5lite.models.attention import Attention, KeysValues
from t5lite.models.cache import Cache, LayerCache, written
from t5lite.models.config import T5Config
from t5lite.models.initializers import Scaled
from t5lite.models.layers import Dropout, Embedding, Linear, RMSNorm
from t5lite.models.masks import segment_mask
from t5lite.models.positions import Bias, RelativePositionBias, Start
from t5lite.models.stack import Stream, constrained, feed_forward, scanned_layers


class DecoderLayer(nn.Module):
    """Self-attention, attention to what was encoded (if anything was), and feed-forward.

    Parameters:
        pre_self_attention_layer_norm, self_attention, pre_mlp_layer_norm, mlp; with an encoder
        pre_cross_attention_layer_norm, encoder_decoder_attention; relpos_bias where each layer
        has its own.
    """

    config: T5Config

    def setup(self) -> None:
        config = self.config
        self.pre_self_attention_layer_norm = RMSNorm(config)
        self.self_attention = Attention(config)
        if config.positions == "layer_bias":
            self.relpos_bias = RelativePositionBias(config, bidirectional=False)
        if config.num_encoder_layers:
            self.pre_cross_attention_layer_norm = RMSNorm(config)
            self.encoder_decoder_attention = Attention(config, has_positions=False)
        self.pre_mlp_layer_norm, self.mlp = RMSNorm(config), feed_forward(config)
        self.post_self_attention_dropout = Dropout()
        self.post_cross_attention_dropout, self.post_mlp_dropout = Dropout(), Dropout()

    def encoded_keys_values(
        self, carry: None, encoded: Float[Array, "b source e"]
    ) -> tuple[None, KeysValues]:
        """Returns what cross-attention attends to; `carry` is there for the loop over layers."""
        return None, self.encoder_decoder_attention.keys_values(encoded)

    def __call__(
        self,
        x: Stream,
        mask: Bool[Array, "#b 1 q k"],
        bias: Bias | None,
        start: Start | None,
        encoded: Float[Array, "b source e"] | None,
        encoded_mask: Bool[Array, "#b 1 q source"] | None,
        is_token: Bool[Array, "b q"],
        dropout_rate: Number | None,
        cached: LayerCache | None,
    ) -> tuple[Stream, KeysValues | None]:
        """Returns the stream and, with a cache, the keys and values of its tokens.

        Args:
            start: the place of the first token; None for 0, which inside `remat` an int would not
                stay.
            cached: this layer's part of the cache, `start` tokens long.
        """
        drop, start = dropout_rate, 0 if start is None else start
        normed = self.pre_self_attention_layer_norm(x)
        new = source = self.self_attention.keys_values(normed, start)
        if cached is not None:
            source = KeysValues(
                *(written(a, b, start, axis=1) for a, b in zip(cached.own, new, strict=True))
            )
        if self.config.positions == "layer_bias":
            bias = self.relpos_bias(x.shape[1], source.key.shape[1], start)
        y = self.self_attention(
            self.self_attention.queries(normed, start),
            source,
            bias=bias,
            mask=mask,
            dropout_rate=drop,
        )
        x = x + self.post_self_attention_dropout(self.self_attention.out(y), drop)
        if self.config.num_encoder_layers:
            cross = self.encoder_decoder_attention
            known = None if cached is None else cached.encoded
            if known is None:
                assert encoded is not None, "neither encoded nor its keys and values are given"
                known = cross.keys_values(encoded)
            y = cross(
                cross.queries(self.pre_cross_attention_layer_norm(x)),
                known,
                bias=None,
                mask=encoded_mask,
                dropout_rate=drop,
            )
            x = x + self.post_cross_attention_dropout(cross.out(y), drop)
        y = self.mlp(self.pre_mlp_layer_norm(x), is_token, dropout_rate=drop)
        x = x + self.post_mlp_dropout(y, drop)
        return constrained(x), None if cached is None else new


class Decoder(nn.Module):
    """Embedded tokens, and what was encoded, to the vectors that logits are made of.

    Parameters:
        relpos_bias/rel_embedding where layers share it, layers/..., decoder_norm/scale, and unless
        logits are tied logits_dense/kernel [embed, vocab], truncated normal with variance
        1 / embed.
    """

    config: T5Config

    def setup(self) -> None:
        config = self.config
        if config.positions == "shared_bias":
            self.relpos_bias = RelativePositionBias(config, bidirectional=False)
        in_axes = {
            "__call__": (*(nn.broadcast,) * 7, 0),
            "encoded_keys_values": (nn.broadcast,),
        }
        self.layers = scanned_layers(DecoderLayer, config, config.num_decoder_layers, in_axes)
        self.decoder_norm = RMSNorm(config)
        self.input_dropout, self.output_dropout = Dropout(), Dropout()
        if not config.tied_logits:
            init = Scaled(1.0, "truncated_normal")
            shape = (config.embed_dim, config.vocab_size)
            self.logits_dense = Linear("ble,ev->blv", shape, ("embed", "vocab"), init)

    def __call__(
        self,
        x: Stream,
        mask: Bool[Array, "#b 1 l l"],
        encoded: Float[Array, "b source e"] | None,
        encoded_mask: Bool[Array, "#b 1 l source"] | None,
        is_token: Bool[Array, "b l"],
        *,
        dropout_rate: Number | None,
    ) -> Stream:
        bias = self._bias(x.shape[1], x.shape[1], 0)
        x = constrained(self.input_dropout(x, dropout_rate))
        x, _ = self.layers(x, mask, bias, None, encoded, encoded_mask, is_token, dropout_rate, None)
        return self.output_dropout(self.decoder_norm(x), dropout_rate)

    def start(
        self,
        rows: int,
        capacity: int,
        encoded: Float[Array, "b source e"] | None,
        encoded_segment_ids: Int[Array, "b source"] | None,
    ) -> Cache:
        """Returns the cache before the first token, for rows of `capacity` tokens."""
        config = self.config
        shape = (config.num_decoder_layers, rows, capacity, config.kv_heads, config.head_dim)
        empty = jnp.zeros(shape, config.compute_dtype)
        source = None if encoded is None else self.layers.encoded_keys_values(None, encoded)[1]
        return Cache(
            length=jnp.zeros([], jnp.int32),
            segment_ids=jnp.zeros((rows, capacity), jnp.int32),
            own=KeysValues(empty, empty),
            encoded=source,
            encoded_segment_ids=encoded_segment_ids,
        )

    def extend(
        self,
        x: Stream,
        segment_ids: Int[Array, "b l"],
        is_prefix: Bool[Array, "b 1 l l"] | None,
        cache: Cache,
    ) -> tuple[Stream, Cache]:
        """Reads tokens behind those of the cache.

        Args:
            is_prefix: which of the tokens see each other whatever their order; None for none.
        """
        (rows, count), start = segment_ids.shape, cache.length
        capacity = cache.segment_ids.shape[1]
        assert count <= capacity, f"{count} tokens for a cache of {capacity}"
        segments = written(cache.segment_ids, segment_ids, start, axis=1)
        keys = jnp.arange(capacity)[None, None, None]
        queries = (jnp.arange(count) + start)[None, None, :, None]
        may_see = keys <= queries
        if is_prefix is not None:
            whole = jnp.zeros((rows, 1, count, capacity), bool)
            may_see = may_see | written(whole, is_prefix, start, axis=3)
        source_segments = cache.encoded_segment_ids
        x, new = self.layers(
            x,
            may_see & segment_mask(segment_ids, segments),
            self._bias(count, capacity, start),
            start,
            None,
            None if source_segments is None else segment_mask(segment_ids, source_segments),
            segment_ids > 0,
            None,
            LayerCache(cache.own, cache.encoded),
        )
        # All layers at once, and in place where the cache is not used again.
        own = KeysValues(
            *(written(a, b, start, axis=2) for a, b in zip(cache.own, new, strict=True))
        )
        extended = dataclasses.replace(cache, length=start + count, segment_ids=segments, own=own)
        # What does not fit has overwritten other tokens: what comes of it must not pass for good.
        x = jnp.where(start + count > capacity, jnp.full([], jnp.nan, x.dtype), x)
        return self.decoder_norm(x), extended

    def logits(self, x: Stream, embedding: Embedding) -> Float[Array, "b l v"]:
        """Returns logits in float32, through `embedding` where they are tied to it."""
        tied = self.config.tied_logits
        logits = embedding.logits(x) if tied else self.logits_dense(x.astype(jnp.float32))
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))

    def _bias(self, queries: int, keys: int, start: Start) -> Bias | None:
        if self.config.positions != "shared_bias":
            return None
        return self.relpos_bias(queries, keys, start)

"""The decoder: every token sees those before it, and what was encoded; at once or from a cache."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.numbers import Number
from t5lite.models.attention import Attention, KeysValues
from t5lite.models.cache import ByHead, Cache, LayerCache, by_head, written
from t5lite.models.config import T5Config
from t5lite.models.initializers import Scaled
from t5lite.models.layers import Dropout, Embedding, Linear, RMSNorm
from t5lite.models.masks import segment_mask
from t5lite.models.positions import Bias, Places, RelativePositionBias, Start
from t5lite.models.stack import Stream, constrained, feed_forward, scanned_layers, unstacked


class Reading(NamedTuple):
    """What a layer is told of tokens that are read behind a cache.

    Args:
        cached: this layer's part of it.
        start: tokens it holds.
        places: where the new tokens stand in the target; `key_places`: where all do.
        apart: whether the new tokens are alternatives, which don't see each other.
    """

    cached: LayerCache
    start: Start
    places: Places
    key_places: Places
    apart: bool


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

    def encoded_keys_values(self, encoded: Float[Array, "b source e"]) -> ByHead:
        """Returns what cross-attention attends to."""
        return by_head(self.encoder_decoder_attention.keys_values(encoded))

    def __call__(
        self,
        x: Stream,
        mask: Bool[Array, "#b 1 q k"],
        bias: Bias | None,
        encoded: Float[Array, "b source e"] | None,
        encoded_mask: Bool[Array, "#b 1 q source"] | None,
        is_token: Bool[Array, "b q"],
        dropout_rate: Number | None,
        reading: Reading | None = None,
    ) -> tuple[Stream, ByHead | None]:
        """Returns the stream and, of what is read behind a cache, its keys and values with those
        of the new tokens.
        """
        drop = dropout_rate
        places = None if reading is None else reading.places
        normed = self.pre_self_attention_layer_norm(x)
        source = self.self_attention.keys_values(normed, places)
        own = None
        if reading is not None:
            own = reading.cached.own.with_new(source, reading.start)
            source = own.read()
        if self.config.positions == "layer_bias":
            length = x.shape[1]
            bias = (
                self.relpos_bias(length, length)
                if reading is None
                else self.relpos_bias.at(reading.places, reading.key_places)
            )
        y = self.self_attention(
            self.self_attention.queries(normed, places),
            source,
            bias=bias,
            mask=mask,
            dropout_rate=drop,
        )
        x = x + self.post_self_attention_dropout(self.self_attention.out(y), drop)
        if self.config.num_encoder_layers:
            cross = self.encoder_decoder_attention
            if reading is not None and reading.cached.encoded is not None:
                known = reading.cached.encoded.read()
            else:
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
        normed = self.pre_mlp_layer_norm(x)
        if reading is not None and reading.apart:
            # Each in a row of its own: of experts, too, they have nothing to share.
            alone = normed.reshape(-1, 1, x.shape[2])
            y = self.mlp(alone, is_token.reshape(-1, 1), dropout_rate=drop).reshape(x.shape)
        else:
            y = self.mlp(normed, is_token, dropout_rate=drop)
        x = x + self.post_mlp_dropout(y, drop)
        return constrained(x), own


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
        in_axes = {"__call__": (nn.broadcast,) * 6}
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
        length, shared = x.shape[1], self.config.positions == "shared_bias"
        bias = self.relpos_bias(length, length) if shared else None
        x = constrained(self.input_dropout(x, dropout_rate))
        x, _ = self.layers(x, mask, bias, encoded, encoded_mask, is_token, dropout_rate)
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
        empty = jnp.zeros((rows, capacity, config.kv_heads, config.head_dim), config.compute_dtype)
        own = by_head(KeysValues(empty, empty))

        def of_layer(layer: DecoderLayer, variables: Any) -> LayerCache:
            if encoded is None:
                return LayerCache(own, None)
            made: Any = layer.apply(variables, encoded, method="encoded_keys_values")
            return LayerCache(own, made)

        return Cache(
            length=jnp.zeros([], jnp.int32),
            segment_ids=jnp.zeros((rows, capacity), jnp.int32),
            positions=jnp.zeros(capacity, jnp.int32),
            layers=tuple(of_layer(*each) for each in self._each_layer()),
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
        queries = jnp.arange(count) + start
        may_see = jnp.arange(capacity)[None, None, None] <= queries[None, None, :, None]
        if is_prefix is not None:
            whole = jnp.zeros((rows, 1, count, capacity), bool)
            may_see = may_see | written(whole, is_prefix, start, axis=3)
        segments = written(cache.segment_ids, segment_ids, start, axis=1)
        may_see = may_see & segment_mask(segment_ids, segments)
        return self._read_on(x, segment_ids, queries, may_see, cache, apart=False)

    def extend_by_one(
        self,
        x: Stream,
        may_see: Bool[Array, "b hypotheses capacity"],
        place: Int[Array, ""],
        cache: Cache,
    ) -> tuple[Stream, Cache]:
        """Reads one token of each of several hypotheses, which stand at one place of the target.

        Args:
            may_see: which tokens of the cache are each hypothesis's own, its new one included: the
                new ones are put into the next places of the cache, in order.
        """
        segments = jnp.ones(x.shape[:2], jnp.int32)
        places = jnp.broadcast_to(place, (x.shape[1],))
        return self._read_on(x, segments, places, may_see[:, None], cache, apart=True)

    def _read_on(
        self,
        x: Stream,
        segment_ids: Int[Array, "b l"],
        places: Int[Array, "l"],
        may_see: Bool[Array, "#b 1 l capacity"],
        cache: Cache,
        *,
        apart: bool,
    ) -> tuple[Stream, Cache]:
        start, count, source_segments = cache.length, x.shape[1], cache.encoded_segment_ids
        key_places = written(cache.positions, places, start, axis=0)
        shared = self.config.positions == "shared_bias"
        bias = self.relpos_bias.at(places, key_places) if shared else None
        source_mask = None
        if source_segments is not None:
            source_mask = segment_mask(segment_ids, source_segments)
        layers: list[LayerCache] = []
        for (layer, variables), cached in zip(self._each_layer(), cache.layers, strict=True):
            reading = Reading(cached, start, places, key_places, apart)
            made: Any = layer.apply(
                variables, x, may_see, bias, None, source_mask, segment_ids > 0, None, reading
            )
            x, own = made
            layers.append(cached._replace(own=own))
        extended = dataclasses.replace(
            cache,
            length=start + count,
            segment_ids=written(cache.segment_ids, segment_ids, start, axis=1),
            positions=key_places,
            layers=tuple(layers),
        )
        # What does not fit has overwritten other tokens: what comes of it must not pass for good.
        capacity = cache.segment_ids.shape[1]
        x = jnp.where(start + count > capacity, jnp.full([], jnp.nan, x.dtype), x)
        return self.decoder_norm(x), extended

    def _each_layer(self) -> Iterator[tuple[DecoderLayer, Any]]:
        """Yields each layer as a module of its own, with its variables."""
        count = self.config.num_decoder_layers
        of_layers = unstacked(self.layers.variables["params"], count)
        for number in range(count):
            yield DecoderLayer(self.config, parent=None), {"params": of_layers[str(number)]}

    def logits(self, x: Stream, embedding: Embedding) -> Float[Array, "b l v"]:
        """Returns logits in float32, through `embedding` where they are tied to it."""
        tied = self.config.tied_logits
        logits = embedding.logits(x) if tied else self.logits_dense(x.astype(jnp.float32))
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))

"""The decoder: every token attends to earlier ones and to what was encoded, all at once or after a
cache.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.numbers import Number
from t5lite.models.adapters import Axis
from t5lite.models.attention_layer import AttentionContext, KeysValues, prepared_context
from t5lite.models.cache import Cache, LayerCache, by_head, updated
from t5lite.models.config import T5Config
from t5lite.models.decoder_layer import DecoderLayer, Incremental
from t5lite.models.dropout import Dropout
from t5lite.models.embedding import Embedding
from t5lite.models.initializers import ScaledInit
from t5lite.models.linear import LinearMap
from t5lite.models.masks import AttentionMask, Positions
from t5lite.models.norms import make_final_norm
from t5lite.models.positions import POSITIONS, positions_in_examples
from t5lite.models.relative_bias import AttentionBias, RelativeBias
from t5lite.models.stack import (
    Stream,
    constrained,
    stacked_layers,
    unstacked,
    window_pattern,
)
from t5lite.models.token_adapters import CROSS_ATTENTION, DECODER_ATTENTION, prefix_length


class _Positions(NamedTuple):
    """Positions of new tokens: in their row, None for 0, 1, ..., and in their examples.

    The latter are None if no layer needs them.
    """

    of_row: Positions
    in_examples: Positions


def logits_map(config: T5Config, full_name: str) -> LinearMap:
    """Returns an output layer of its own, as opposed to one tied to the embedding."""
    return LinearMap(
        "ble,ev->blv",
        inputs=(Axis("embed", config.embed_dim),),
        outputs=(Axis("vocab", config.vocab_size),),
        initializer=ScaledInit(1.0, "truncated_normal"),
        full_name=full_name,
        adapters=config.adapters,
    )


def token_logits(
    config: T5Config,
    x: Stream,
    embedding: Embedding,
    own: LinearMap | None,
    bias: Float[Array, "v"] | None = None,
) -> Float[Array, "b l v"]:
    """Returns logits in float32, through `embedding` if they are tied to it, else through `own`."""
    logits: Any
    if config.tied_logits:
        logits = embedding.logits(x)
    else:
        assert own is not None, "no output layer"
        logits = own(x.astype(jnp.float32))
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)[None, None]
    if (cap := config.logits_soft_cap) is not None:
        logits = cap * jnp.tanh(logits / cap)
    return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))


class Decoder(nn.Module):
    """Embedded tokens, and what was encoded, to the vectors that logits are computed from.

    Parameters:
        layers/..., decoder_norm/scale; relpos_bias/rel_embedding with positions "shared_bias";
        logits_dense/kernel [embed, vocab], truncated normal with variance 1 / embed, unless logits
        are tied.
    """

    config: T5Config

    def setup(self) -> None:
        config = self.config
        self.pattern = window_pattern(config.decoder_windows, config.num_decoder_layers)
        self.relpos_bias = POSITIONS[config.positions].stack_bias(config, bidirectional=False)
        self.layers = stacked_layers(
            DecoderLayer, config, self.pattern, num_arguments=5, init=self.is_initializing()
        )
        self.decoder_norm = make_final_norm(config)
        self.input_dropout = Dropout()
        self.output_dropout = Dropout()
        self.logits_dense = None
        if not config.tied_logits:
            self.logits_dense = logits_map(config, "decoder/logits_dense")

    def __call__(
        self,
        x: Stream,
        segment_ids: Int[Array, "b l"],
        prefix: Int[Array, "b l"] | None,
        encoded: Float[Array, "b source source_embed"] | None,
        encoded_segment_ids: Int[Array, "b source"] | None,
        *,
        dropout_rate: Number | None,
    ) -> Stream:
        """Returns the decoder's output.

        Args:
            prefix: 1 for tokens that attend to each other in both directions; None for none.
        """
        length = x.shape[1]
        mask = AttentionMask(
            query_segment_ids=segment_ids,
            key_segment_ids=segment_ids,
            query_prefix=prefix,
            key_prefix=prefix,
            causal=True,
        )
        bias = None if self.relpos_bias is None else self.relpos_bias(length)
        in_examples = None
        if self.config.reads_positions_in_examples:
            in_examples = positions_in_examples(segment_ids)
        positions = _Positions(None, in_examples)
        contexts = self._contexts(mask, bias, positions, length, segment_ids, encoded_segment_ids)
        cross = self._cross_context(segment_ids, encoded_segment_ids, in_examples)
        x = constrained(self.input_dropout(x, dropout_rate))
        x, _ = self.layers(x, contexts, encoded, cross, segment_ids > 0, dropout_rate)
        return self.output_dropout(self.decoder_norm(x), dropout_rate)

    def start(
        self,
        rows: int,
        capacity: int,
        encoded: Float[Array, "b source source_embed"] | None,
        encoded_segment_ids: Int[Array, "b source"] | None,
    ) -> Cache:
        """Returns the cache before the first token, for rows of `capacity` tokens."""
        config = self.config
        empty = jnp.zeros((rows, capacity, config.kv_heads, config.head_dim), config.compute_dtype)
        own = by_head(KeysValues(empty, empty))
        source_positions = None
        if encoded_segment_ids is not None and config.cross_positions != "none":
            source_positions = positions_in_examples(encoded_segment_ids)

        def of_layer(layer: DecoderLayer, variables: Any) -> LayerCache:
            made: Any = layer.apply(variables, rows, encoded, source_positions, method="memory")
            before, of_encoded = made
            return LayerCache(own if before is None else own.after(before), of_encoded)

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
        prefix: Int[Array, "b l"] | None,
        cache: Cache,
    ) -> tuple[Stream, Cache]:
        """Processes tokens that follow those of the cache.

        Args:
            prefix: 1 for those of the tokens that attend to each other in both directions; None
                for none.
        """
        rows, count = segment_ids.shape
        start = cache.length
        capacity = cache.segment_ids.shape[1]
        assert count <= capacity, f"{count} tokens for a cache of {capacity}"
        key_prefix = None
        if prefix is not None:
            key_prefix = updated(jnp.zeros((rows, capacity), prefix.dtype), prefix, start, axis=1)
        mask = AttentionMask(
            query_segment_ids=segment_ids,
            key_segment_ids=updated(cache.segment_ids, segment_ids, start, axis=1),
            query_prefix=prefix,
            key_prefix=key_prefix,
            causal=True,
        )
        in_examples = None
        if self.config.reads_positions_in_examples:
            every = positions_in_examples(mask.key_segment_ids)
            in_examples = jax.lax.dynamic_slice_in_dim(every, start, count, 1)
        positions = _Positions(jnp.arange(count) + start, in_examples)
        return self._extended(x, segment_ids, positions, mask, cache, alternatives=False)

    def extend_by_one(
        self,
        x: Stream,
        visible: Bool[Array, "b hypotheses capacity"],
        position: Int[Array, ""],
        cache: Cache,
    ) -> tuple[Stream, Cache]:
        """Processes one token of each of several hypotheses, at the same position of the target.

        Args:
            visible: which tokens of the cache belong to each hypothesis, its new one included: the
                new ones go into the next slots of the cache, in order.
        """
        segments = jnp.ones(x.shape[:2], jnp.int32)
        positions = jnp.broadcast_to(position, (x.shape[1],))
        in_examples = None
        if self.config.reads_positions_in_examples:
            # Rows may begin with padding, which no hypothesis sees.
            in_examples = jnp.sum(visible, axis=2, dtype=jnp.int32) - 1
        both = _Positions(positions, in_examples)
        mask = AttentionMask(visible=visible[:, None])
        return self._extended(x, segments, both, mask, cache, alternatives=True)

    def _extended(
        self,
        x: Stream,
        segment_ids: Int[Array, "b l"],
        positions: _Positions,
        mask: AttentionMask,
        cache: Cache,
        *,
        alternatives: bool,
    ) -> tuple[Stream, Cache]:
        start = cache.length
        count = x.shape[1]
        capacity = cache.segment_ids.shape[1]
        key_positions = updated(cache.positions, positions.of_row, start, axis=0)
        mask = dataclasses.replace(
            mask, query_positions=positions.of_row, key_positions=key_positions
        )
        bias = None
        if self.relpos_bias is not None:
            bias = self.relpos_bias(capacity, positions.of_row, key_positions)
        encoded_segment_ids = cache.encoded_segment_ids
        contexts = self._contexts(mask, bias, positions, capacity, segment_ids, encoded_segment_ids)
        cross = self._cross_context(segment_ids, encoded_segment_ids, positions.in_examples)
        memory = prefix_length(self.config.adapters, DECODER_ATTENTION)
        memory += encoded_segment_ids.shape[1] if self.config.merged_attention else 0
        layers: list[LayerCache] = []
        for (layer, variables), cached in zip(self._each_layer(), cache.layers, strict=True):
            slot = start + memory if memory else start
            incremental = Incremental(cached, slot, key_positions, alternatives)
            made: Any = layer.apply(
                variables, x, contexts, None, cross, segment_ids > 0, None, incremental
            )
            x, own = made
            layers.append(cached._replace(own=own))
        extended = dataclasses.replace(
            cache,
            length=start + count,
            segment_ids=updated(cache.segment_ids, segment_ids, start, axis=1),
            positions=key_positions,
            layers=tuple(layers),
        )
        # Tokens beyond the capacity have overwritten others: the result must not look valid.
        x = jnp.where(start + count > capacity, jnp.full([], jnp.nan, x.dtype), x)
        return self.decoder_norm(x), extended

    def _contexts(
        self,
        mask: AttentionMask,
        bias: RelativeBias | None,
        positions: _Positions,
        key_length: int,
        segment_ids: Int[Array, "b l"],
        encoded_segment_ids: Int[Array, "b source"] | None,
    ) -> tuple[AttentionContext, ...]:
        """Returns the context of self-attention for each window."""
        query_length = segment_ids.shape[1]
        prefix = prefix_length(self.config.adapters, DECODER_ATTENTION)
        with_prefix: AttentionBias | None = bias
        if self.relpos_bias is not None and bias is not None:
            with_prefix = self.relpos_bias.with_prefix(
                bias, prefix, positions.in_examples, limit=key_length, key_length=key_length
            )
        if self.config.merged_attention and encoded_segment_ids is not None:
            mask = mask.with_memory(segment_ids, encoded_segment_ids, key_length)
            key_length += encoded_segment_ids.shape[1]
        masks = [dataclasses.replace(mask, window=window) for window in self.pattern.windows]
        lengths = query_length, key_length
        contexts = (
            prepared_context(self.config, each, with_prefix, *lengths, prefix) for each in masks
        )
        # A relative bias is of positions in the row.
        rotary = self.config.positions == "rotary" and self.config.reads_positions_in_examples
        own = positions.in_examples if rotary else positions.of_row
        return tuple(
            context._replace(positions=own, in_examples=positions.in_examples)
            for context in contexts
        )

    def _cross_context(
        self,
        segment_ids: Int[Array, "b l"],
        encoded_segment_ids: Int[Array, "b source"] | None,
        positions: Positions,
    ) -> AttentionContext | None:
        if encoded_segment_ids is None or self.config.merged_attention:
            return None
        mask = AttentionMask(query_segment_ids=segment_ids, key_segment_ids=encoded_segment_ids)
        lengths = segment_ids.shape[1], encoded_segment_ids.shape[1]
        prefix = prefix_length(self.config.adapters, CROSS_ATTENTION)
        context = prepared_context(self.config, mask, None, *lengths, prefix)
        if self.config.cross_positions == "none":
            return context
        theirs = encoded_segment_ids[:, None, :]
        of_example = (segment_ids[:, :, None] == theirs) & (theirs > 0)
        inputs = jnp.sum(of_example, axis=2, dtype=jnp.int32)
        return context._replace(
            positions=inputs + jnp.broadcast_to(positions, segment_ids.shape),
            source_positions=positions_in_examples(encoded_segment_ids),
        )

    def _each_layer(self) -> Iterator[tuple[DecoderLayer, Any]]:
        """Yields each layer as a module of its own, with its variables."""
        kinds = self.pattern.kinds
        params = unstacked(self.variables["params"]["layers"], len(kinds))
        for number, kind in enumerate(kinds):
            layer = DecoderLayer(self.config, kind=kind, parent=None)
            yield layer, {"params": params[str(number)]}

    def logits(self, x: Stream, embedding: Embedding) -> Float[Array, "b l v"]:
        """Returns logits in float32, through `embedding` if they are tied to it."""
        return token_logits(self.config, x, embedding, self.logits_dense)

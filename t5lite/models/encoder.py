"""The encoder: every token attends to the whole input, or to what its mixer and window allow."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from t5lite.core.batches import Batch
from t5lite.core.fields import field_error
from t5lite.core.numbers import Number
from t5lite.models.adapters import Axis
from t5lite.models.attention_layer import Attention
from t5lite.models.config import T5Config
from t5lite.models.dropout import Dropout
from t5lite.models.embedding import Embedding, LookupTable
from t5lite.models.mixers import MIXERS
from t5lite.models.norms import (
    NORM_PLACEMENTS,
    Identity,
    Sublayers,
    make_final_norm,
    make_norm,
)
from t5lite.models.positions import POSITIONS, check_row_length, positions_in_examples
from t5lite.models.prompts import InputPrompt, embedded_tokens
from t5lite.models.stack import (
    LAYER_OUTPUTS,
    Stream,
    constrained,
    feed_forward,
    stacked_layers,
    window_pattern,
)
from t5lite.models.token_adapters import ENCODER_ATTENTION, prefix_length


class EncoderLayer(Sublayers):
    """Self-attention and feed-forward.

    Parameters:
        attention, mlp, and the norms of these sublayers; relpos_bias with positions "layer_bias";
        what the mixer adds.

    Args:
        kind: which of the stack's windows is this layer's.
        input_is_normalised: whether the layer comes after the embedding norm, and so has no
            pre_attention_layer_norm.

    Differs from T5X in the name of LongT5's `global_layer_norm`, there `attention/T5LayerNorm_0`.
    """

    config: T5Config
    kind: int = 0
    input_is_normalised: bool = False

    def setup(self) -> None:
        config = self.config
        normalised = ("attention",) if self.input_is_normalised else ()
        self.add_sublayers("attention", "mlp", normalised=normalised)
        windows = window_pattern(config.encoder_windows, config.num_encoder_layers).windows
        of_window = config.windowed_config(windows[self.kind])
        self.attention = Attention(of_window, ENCODER_ATTENTION)
        self.mlp = feed_forward(config, "encoder/layers/mlp")
        self.relpos_bias = POSITIONS[config.positions].layer_bias(config, bidirectional=True)
        self.part_names = _add_parts(self, MIXERS[config.encoder_attention].layer_parts(config))

    def __call__(
        self,
        x: Stream,
        contexts: tuple[Any, ...],
        is_token: Bool[Array, "b l"],
        dropout_rate: Number | None,
    ) -> tuple[Stream, None]:
        mixer = MIXERS[self.config.encoder_attention]
        context = contexts[self.kind]
        bias = None
        if self.relpos_bias is not None:
            prefix = prefix_length(self.config.adapters, ENCODER_ATTENTION)
            length = x.shape[1]
            bias = self.relpos_bias.with_prefix(
                self.relpos_bias(length),
                prefix,
                context.in_examples,
                limit=length,
                key_length=length,
            )
        attended = mixer.mix(
            self.attention,
            self.sublayer_input("attention", x),
            context,
            bias,
            {name: getattr(self, name) for name in self.part_names},
            dropout_rate,
        )
        x = self.add_output("attention", x, self.attention.out(attended), dropout_rate)
        y = self.mlp(self.sublayer_input("mlp", x), is_token, dropout_rate=dropout_rate)
        x = constrained(self.add_output("mlp", x, y, dropout_rate))
        self.sow(LAYER_OUTPUTS, "output", x)
        return x, None


class Encoder(nn.Module):
    """Embedded tokens to encoded ones.

    Parameters:
        layers/..., encoder_norm/scale; relpos_bias/rel_embedding with positions "shared_bias",
        position_embedder/embedding with "learned"; token_type_embedder/embedding with
        `num_token_types`; embedding_norm/scale if there is one, when pre_attention_layer_norm is of
        all layers but the first; what the mixer adds.
    """

    config: T5Config

    def setup(self) -> None:
        config = self.config
        apart = config.embedding_norm and "pre" in NORM_PLACEMENTS[config.norm_placement]
        self.pattern = window_pattern(
            config.encoder_windows, config.num_encoder_layers, apart=int(apart)
        )
        self.position_embedder = POSITIONS[config.positions].embedder(config)
        self.token_type_embedder = None
        if config.num_token_types:
            self.token_type_embedder = LookupTable(
                config, Axis("token_types", config.num_token_types)
            )
        self.embedding_norm = make_norm(config) if config.embedding_norm else Identity()
        self.relpos_bias = POSITIONS[config.positions].stack_bias(config, bidirectional=True)
        self.part_names = _add_parts(self, MIXERS[config.encoder_attention].stack_parts(config))
        self.layers = stacked_layers(
            EncoderLayer,
            config,
            self.pattern,
            num_arguments=3,
            init=self.is_initializing(),
            first={"input_is_normalised": True},
        )
        self.encoder_norm = make_final_norm(config)
        self.input_dropout = Dropout()
        self.output_dropout = Dropout()

    def __call__(
        self,
        x: Stream,
        segment_ids: Int[Array, "b l"],
        token_types: Int[Array, "b l"] | None = None,
        *,
        dropout_rate: Number | None,
        has_queries: bool = False,
    ) -> Stream:
        """Returns the encoder's output.

        Args:
            token_types: None for a type of 0 everywhere.
            has_queries: whether rows hold the candidates of queries, which may be longer together
                than the learned positions; the run checks that each of them is not.

        Raises:
            UserError: if rows are longer than the learned positions, or there are types that the
                model does not have.
        """
        if self.position_embedder is not None and not has_queries:
            check_row_length(self.config, x.shape[1])
        x = self._with_positions_and_types(x, segment_ids, token_types)
        x = constrained(self.input_dropout(self.embedding_norm(x), dropout_rate))
        mixer = MIXERS[self.config.encoder_attention]
        contexts = mixer.contexts(
            self.config,
            segment_ids,
            self.pattern.windows,
            self.relpos_bias,
            {name: getattr(self, name) for name in self.part_names},
        )
        x, _ = self.layers(x, contexts, segment_ids > 0, dropout_rate)
        return self.output_dropout(self.encoder_norm(x), dropout_rate)

    def _with_positions_and_types(
        self, x: Stream, segment_ids: Int[Array, "b l"], token_types: Int[Array, "b l"] | None
    ) -> Stream:
        if self.token_type_embedder is not None:
            types = jnp.zeros_like(segment_ids) if token_types is None else token_types
            x = x + self.token_type_embedder(types)
        elif token_types is not None:
            rule = "at least 1 for a batch with token types"
            raise field_error(self.config, "num_token_types", rule)
        if self.position_embedder is not None:
            positions = positions_in_examples(segment_ids)
            # There may be more padding than learned positions, beyond which vectors are NaN.
            x = x + self.position_embedder(jnp.where(segment_ids > 0, positions, 0))
        return x


def encoder_output(
    encoder: Encoder,
    embedding: Embedding,
    batch: Batch,
    dropout_rate: Number | None,
    prompt: InputPrompt | None = None,
) -> Stream:
    """Returns the encoder's output for `encoder_input_tokens`."""
    return encoder(
        embedded_tokens(embedding, batch, "encoder", prompt),
        batch["encoder_segment_ids"],
        batch.get("encoder_token_types"),
        dropout_rate=dropout_rate,
        has_queries="encoder_query_ids" in batch,
    )


def _add_parts(module: nn.Module, parts: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Makes modules attributes of `module`, by which their parameters are named."""
    for name, part in parts.items():
        setattr(module, name, part)
    return tuple(parts)

"""The fields of `T5Config`, which the parts of a model read.

`config.T5Config` adds the checks. They are apart because the checks look names up in the tables of
the parts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
from jax.typing import DTypeLike

from t5lite.core.examples import START_TOKEN
from t5lite.core.numbers import Number
from t5lite.models.token_adapters import DECODER_ATTENTION, prefix_length

# Fields that a field `encoder_...` overrides for the encoder.
ENCODER_FIELDS = (
    "embed_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_dim",
    "attention_scale",
)

DTYPES: Mapping[str, DTypeLike] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Not `Self`, which the type checker of the tests does not know in methods.
_Fields = TypeVar("_Fields", bound="T5Fields")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Fields:
    """Sizes and parts of a model: encoder-decoder, encoder-only or decoder-only.

    All fields are constants of the compiled program, except `dropout_rate`, which is an input.

    Args:
        vocab_size: rows of the embedding and of the logits; at least the vocabulary's size.
        embed_dim: model width.
        num_heads: attention heads; times `head_dim` need not equal `embed_dim`.
        head_dim: width of one head.
        mlp_dim: feed-forward width.
        num_decoder_layers: layers of the decoder; 0 for an encoder-only model.
        num_encoder_layers: layers of the encoder; 0 for a decoder-only model.
        num_kv_heads: heads of keys and values, each shared by equally many query heads
            (grouped-query attention); None for `num_heads`.
        encoder_embed_dim, encoder_num_heads, encoder_num_kv_heads, encoder_head_dim,
            encoder_mlp_dim, encoder_attention_scale: of the encoder, where it differs from the
            decoder; None for the field without `encoder_`.
        mlp_activations: `("relu",)` in T5 1.0; `("gelu", "linear")`, a gated GELU, since T5 1.1.
            "gelu" is the tanh approximation (transformers' `gelu_new`), "gelu_exact" the exact one.
        num_experts: feed-forward layers among which a router chooses for each token (mixture of
            experts); None for one feed-forward layer.
        experts_per_token: 1 as in Switch Transformers, or 2.
        capacity_factor: an expert takes this many times the tokens of a row that it would take if
            all experts took equally many; the rest passes by. During decoding every token finds a
            slot, so tokens over the capacity differ.
        dropout_rate: in [0, 1). 0 compiles no dropout.
        norm: "rms" scales by a weight that starts at 1, "rms_plus_one" by 1 plus a weight that
            starts at 0 (Gemma). "layer" is layer norm (BERT), "layer_no_bias" the same without its
            bias (ModernBERT).
        norm_placement: "pre" normalises the input of each sublayer (T5), "sandwich" also its
            output before it is added (Gemma 2, T5Gemma), "post" the sum of both (BERT).
        norm_epsilon: added to the mean of squares, in layer norm to the variance.
        embedding_norm: whether a norm normalises what enters the encoder (BERT, ModernBERT). The
            first layer then has no norm of the input of its attention.
        linear_bias: whether the maps of attention and feed-forward layers add a bias (BERT).
        qk_norm: whether a norm of this kind normalises each head's queries and keys, before
            rotary positions, in attention within a sequence (Gemma 3, Qwen 3).
        positions: "shared_bias" (T5), "layer_bias" (umT5), "rotary" (Llama), or "learned" for a
            vector of each position that is added to the embeddings (BERT).
        max_positions: how many positions are learned; no row of a batch may be longer.
        num_buckets, max_distance: of the relative position bias.
        rotary_base: the slowest rotation takes about 2 pi times as many tokens.
        rotary_base_windowed: the same of layers with a window; None for `rotary_base`.
        rotary_scaling: how rotations are slowed for longer texts than those of pre-training:
            ("linear", factor), or ("llama3", factor, low_frequency_factor, high_frequency_factor,
            original_length); see `positions.ROTARY_SCALINGS`. With `rotary_base_windowed` those of
            layers without a window alone. Empty: not at all.
        attention: the implementation, "reference" or your own as "module:function"; see
            `attention.ATTENTION`.
        attention_scale: factor of the scores. T5 has none; others have 1 / sqrt(head_dim).
        attention_soft_cap: limits scores to cap * tanh(score / cap); None for no limit.
        encoder_attention: what the encoder mixes tokens with: "full" (T5), or LongT5's "local" or
            "transient_global".
        local_radius: tokens to each side that local attention sees.
        global_block_size: tokens that one global token summarises.
        encoder_windows, decoder_windows: how many tokens to each side the self-attention of a
            layer sees: a number, a pair (left, right), or None for all. The pattern repeats over
            the layers: (4096, None) alternates sliding and full attention. Empty: all layers see
            all. A decoder's token sees none to its right, except in a prefix.
        cross_positions: of queries and keys in cross-attention, "none" (T5), or "continued": rotary
            ones that the targets of an example continue after its inputs (RedLLM).
        merged_attention: whether the decoder has no cross-attention, and its self-attention reads
            the encoder's output too, through its own key and value maps, without positions (T5Gemma
            2).
        separate_embeddings: whether encoder and decoder have an embedding each (T5Gemma), or one.
        scale_embeddings: whether embeddings are multiplied by sqrt(embed_dim) (Gemma).
        num_token_types: kinds of tokens with a vector each that is added to the embeddings, such as
            BERT's two segments; 0 for none. See `EncoderOnly`.
        tied_logits: whether the output layer is the embedding (T5 1.0) or has its own kernel. It is
            the decoder's where each stack has one.
        scale_tied_logits: whether tied logits are divided by sqrt(embed_dim) (T5 1.0).
        logits_soft_cap: limits logits of tokens to cap * tanh(logit / cap); None for no limit.
        logits_transform: whether an encoder-only model applies a linear map, the first of
            `mlp_activations` and a norm before logits of tokens or classes (BERT's masked language
            model).
        logits_bias: whether logits of tokens have a bias, in encoder-only models.
        next_sentence: whether an encoder-only model of tokens also decides, from the first token of
            an example, whether the second part of its inputs follows the first (BERT).
        num_weighted_tasks: tasks of a mixture whose losses have learned weights, see the loss
            `TaskWeights`; 0 for none.
        teacher_embed_dim: width of a teacher whose layers `LayerDistillation` compares with those
            of this model, through a linear map for each stack; None to compare them directly.
        prefix_attention: whether the inputs of a decoder-only model's example attend to each other
            in both directions (prefix language model).
        end_of_image_token: a token whose embedding is a vector of its own, which is not scaled and
            does not make its logit (T5Gemma 2); None for none.
        start_token: the token before the first target; 0, the padding id, in T5.
        adapters: parameter-efficient changes, as objects or "module:function"; of those of a linear
            map the first is the innermost. See `adapters.Adapter` and `token_adapters`.
        dtype: of the computation, "bfloat16" or "float32"; for parameters see `train.param_dtype`.
        remat: what the backward pass recomputes: "none", "attention" (its weights), "minimal" (all
            but the results of linear maps) or "full".
        scan_unroll: layers in one iteration of the loop over layers; 1 compiles fastest.
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_decoder_layers: int = 0
    num_encoder_layers: int = 0
    num_kv_heads: int | None = None
    encoder_embed_dim: int | None = None
    encoder_num_heads: int | None = None
    encoder_num_kv_heads: int | None = None
    encoder_head_dim: int | None = None
    encoder_mlp_dim: int | None = None
    encoder_attention_scale: float | None = None
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    num_experts: int | None = None
    experts_per_token: int = 1
    capacity_factor: float = 1.25
    dropout_rate: Number = 0.0
    norm: str = "rms"
    norm_placement: str = "pre"
    norm_epsilon: float = 1e-6
    embedding_norm: bool = False
    linear_bias: bool = False
    qk_norm: bool = False
    positions: str = "shared_bias"
    max_positions: int | None = None
    num_buckets: int = 32
    max_distance: int = 128
    rotary_base: float = 10000.0
    rotary_base_windowed: float | None = None
    rotary_scaling: tuple[Any, ...] = ()
    attention: str = "reference"
    attention_scale: float = 1.0
    attention_soft_cap: float | None = None
    encoder_attention: str = "full"
    local_radius: int = 127
    global_block_size: int = 16
    encoder_windows: tuple[Any, ...] = ()
    decoder_windows: tuple[Any, ...] = ()
    cross_positions: str = "none"
    merged_attention: bool = False
    separate_embeddings: bool = False
    scale_embeddings: bool = False
    num_token_types: int = 0
    tied_logits: bool = False
    scale_tied_logits: bool = True
    logits_soft_cap: float | None = None
    logits_transform: bool = False
    logits_bias: bool = False
    next_sentence: bool = False
    num_weighted_tasks: int = 0
    teacher_embed_dim: int | None = None
    prefix_attention: bool = False
    end_of_image_token: int | None = None
    start_token: int = START_TOKEN
    adapters: tuple[Any, ...] = ()
    dtype: str = "bfloat16"
    remat: str = "none"
    scan_unroll: int = 1

    @property
    def compute_dtype(self) -> DTypeLike:
        """The dtype of activations."""
        return DTYPES[self.dtype]

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def has_cross_attention(self) -> bool:
        """Whether decoder layers have a sublayer for the encoder's output."""
        return self.num_encoder_layers > 0 and not self.merged_attention

    @property
    def reads_encoded_by_position(self) -> bool:
        """Whether what the decoder reads of an input depends on positions in the example."""
        return self.merged_attention or self.cross_positions != "none"

    @property
    def reads_positions_in_examples(self) -> bool:
        """Whether self-attention of the decoder needs the positions of tokens in their examples."""
        has_prefix = prefix_length(self.adapters, DECODER_ATTENTION) > 0
        return self.reads_encoded_by_position or has_prefix

    def windowed_config(self: _Fields, window: Any) -> _Fields:
        """Returns the configuration of self-attention in layers with this window, None for none.

        >>> config = T5Fields(vocab_size=384, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
        ...     rotary_base=1e6, rotary_base_windowed=1e4)
        >>> config.windowed_config((4, 0)).rotary_base, config.windowed_config(None).rotary_base
        (10000.0, 1000000.0)
        """
        if self.rotary_base_windowed is None:
            return self
        common = dataclasses.replace(self, rotary_base_windowed=None)
        if window is None:
            return common
        return dataclasses.replace(common, rotary_base=self.rotary_base_windowed, rotary_scaling=())

    def encoder_config(self: _Fields) -> _Fields:
        """Returns the configuration whose sizes are the encoder's.

        >>> config = T5Fields(vocab_size=384, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
        ...     encoder_embed_dim=32, num_encoder_layers=1, num_decoder_layers=1)
        >>> config.encoder_config().embed_dim, config.encoder_config().mlp_dim
        (32, 16)
        """
        given = {name: getattr(self, f"encoder_{name}") for name in ENCODER_FIELDS}
        own = {name: value for name, value in given.items() if value is not None}
        if not own:
            return self
        unset: dict[str, Any] = dict.fromkeys(f"encoder_{name}" for name in ENCODER_FIELDS)
        return dataclasses.replace(self, **unset, **own)

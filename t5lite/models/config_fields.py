"""The fields of `T5Config`, which the parts of a model read.

`config.T5Config` adds the checks. They are apart because the checks look names up in the tables of
the parts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from t5lite.core.examples import START_TOKEN
from t5lite.core.numbers import Number

DTYPES: Mapping[str, DTypeLike] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


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
            starts at 0 (Gemma).
        norm_placement: "pre" normalises the input of each sublayer (T5), "sandwich" also its
            output before it is added (Gemma 2, T5Gemma).
        norm_epsilon: added to the mean of squares in RMS norm.
        positions: "shared_bias" (T5), "layer_bias" (umT5) or "rotary" (Llama).
        num_buckets, max_distance: of the relative position bias.
        rotary_base: the slowest rotation takes about 2 pi times as many tokens.
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
        tied_logits: whether the output layer is the embedding (T5 1.0) or has its own kernel.
        prefix_attention: whether the inputs of a decoder-only model's example attend to each other
            in both directions (prefix language model).
        start_token: the token before the first target; 0, the padding id, in T5.
        adapters: parameter-efficient changes to linear maps, as objects or "module:function"; the
            first is the innermost. See `adapters.Adapter`.
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
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    num_experts: int | None = None
    experts_per_token: int = 1
    capacity_factor: float = 1.25
    dropout_rate: Number = 0.0
    norm: str = "rms"
    norm_placement: str = "pre"
    norm_epsilon: float = 1e-6
    positions: str = "shared_bias"
    num_buckets: int = 32
    max_distance: int = 128
    rotary_base: float = 10000.0
    attention: str = "reference"
    attention_scale: float = 1.0
    attention_soft_cap: float | None = None
    encoder_attention: str = "full"
    local_radius: int = 127
    global_block_size: int = 16
    encoder_windows: tuple[Any, ...] = ()
    decoder_windows: tuple[Any, ...] = ()
    tied_logits: bool = False
    prefix_attention: bool = False
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

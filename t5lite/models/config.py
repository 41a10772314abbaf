"""The shape of a T5 network and the choices that are part of its program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from t5lite.core.errors import UserError, check_choice, choose
from t5lite.core.numbers import Number, check_number

DTYPES: dict[str, DTypeLike] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# GELU is the tanh approximation, which published T5 checkpoints were trained with.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}

# Where a token stands: a bias on the scores of self-attention that all layers of a stack share
# (T5), one of each layer's own (umT5), or queries and keys turned by their place (RoFormer, Llama).
POSITIONS = ("shared_bias", "layer_bias", "rotary")

# What a token of the encoder may attend to: all tokens, those near it, or those and a summary of
# each block of tokens (LongT5).
ENCODER_ATTENTION = ("full", "local", "transient_global")

# The name of what a product with a parameter gives, for the policies below.
LINEAR = "linear"

# What the forward pass of a layer keeps for the backward pass, from all of it to least.
# "attention" is no policy of the layer: attention alone computes its weights again.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "attention": None,
    "minimal": jax.checkpoint_policies.save_only_these_names(LINEAR),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes and choices of one T5: encoder-decoder, encoder-only or decoder-only.

    Args:
        vocab_size: rows of the embedding and of the logits; at least the vocabulary's size.
        embed_dim: model width.
        num_heads: attention heads; times `head_dim` need not equal `embed_dim`.
        head_dim: width of one head.
        mlp_dim: feed-forward width.
        num_decoder_layers: layers of the decoder; 0 for an encoder-only model.
        num_encoder_layers: layers of the encoder; 0 for a decoder-only model.
        num_kv_heads: heads of keys and values, each shared by as many query heads as there are
            to one of them (grouped-query attention); None for `num_heads`.
        mlp_activations: `("relu",)` in T5 1.0; `("gelu", "linear")`, a gated GELU, since T5 1.1.
        num_experts: feed-forward layers among which a router chooses for each token (mixture of
            experts); None for one that all tokens take.
        experts_per_token: 1 as in Switch Transformers, or 2.
        capacity_factor: an expert takes this many times the tokens of a row that it would take if
            all experts took the same number; what is over goes to none. Where targets are written
            token by token every one finds a place, so that tokens over the capacity differ.
        dropout_rate: in [0, 1). A number is an input of the compiled step; 0 compiles none in.
        positions: how a token knows where others are: "shared_bias" (T5), "layer_bias" (umT5) or
            "rotary" (Llama).
        num_buckets, max_distance: of the relative position bias.
        rotary_base: the slowest turn takes about 2 pi times as many tokens.
        encoder_attention: "full" (T5), or LongT5's "local" or "transient_global".
        local_radius: tokens to each side that local attention sees.
        global_block_size: tokens that one global token sums up.
        norm_epsilon: added to the mean of squares in RMS norm.
        tied_logits: whether the output layer is the embedding (T5 1.0) or a kernel of its own.
        prefix_attention: whether a decoder-only model sees the inputs of an example as a whole
            (prefix language model) or each place only what is before it.
        dtype: of the computation, "bfloat16" or "float32"; for parameters see `train.param_dtype`.
        remat: what the backward pass computes again: "none", "attention" (its weights),
            "minimal" (all but products with parameters) or "full".
        scan_unroll: layers in one turn of the loop over layers; 1 compiles fastest.

    Raises:
        UserError: for a size under 1, a rate outside [0, 1), an unknown name, or choices that
            exclude each other.
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
    positions: str = "shared_bias"
    num_buckets: int = 32
    max_distance: int = 128
    rotary_base: float = 10000.0
    encoder_attention: str = "full"
    local_radius: int = 127
    global_block_size: int = 16
    norm_epsilon: float = 1e-6
    tied_logits: bool = False
    prefix_attention: bool = False
    dtype: str = "bfloat16"
    remat: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name.endswith("coder_layers") else 1
            if field.type is int and not (isinstance(value, int) and value >= least):
                raise UserError(
                    f"T5Config.{field.name} must be a whole number >= {least}, got {value!r}"
                )
        for name in ("norm_epsilon", "rotary_base", "capacity_factor"):
            check_number(f"T5Config.{name}", getattr(self, name), "over 0", lambda x: x > 0)
        groups = self.num_kv_heads
        if groups is not None and not (
            isinstance(groups, int) and groups > 0 and self.num_heads % groups == 0
        ):
            raise UserError(
                f"T5Config.num_kv_heads must divide num_heads ({self.num_heads}), got "
                f"{self.num_kv_heads}"
            )
        check_number("T5Config.num_experts", self.num_experts, "at least 2", lambda n: n >= 2)
        most = 1 if self.num_experts is None else 2
        if self.experts_per_token > most:
            raise UserError(
                "T5Config.experts_per_token must be 1 or 2, 1 without T5Config.num_experts, got "
                f"{self.experts_per_token}"
            )
        check_number(
            "T5Config.dropout_rate", self.dropout_rate, "in [0, 1)", lambda rate: 0 <= rate < 1
        )
        if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 2:
            raise UserError(
                "T5Config.num_buckets must be divisible by 4 and at most twice max_distance - 1, "
                f"got num_buckets={self.num_buckets}, max_distance={self.max_distance}"
            )
        check_choice("T5Config.positions", self.positions, POSITIONS)
        check_choice("T5Config.encoder_attention", self.encoder_attention, ENCODER_ATTENTION)
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(
                f"T5Config.head_dim must be even for rotary positions, got {self.head_dim}"
            )
        if self.encoder_attention != "full" and self.positions != "shared_bias":
            raise UserError(
                f"T5Config.encoder_attention {self.encoder_attention!r} needs positions "
                f"'shared_bias', got {self.positions!r}"
            )
        if self.encoder_attention != "full" and not self.num_encoder_layers:
            raise UserError(
                f"T5Config.encoder_attention {self.encoder_attention!r} needs an encoder, got "
                "num_encoder_layers=0"
            )
        if self.prefix_attention and self.num_encoder_layers:
            raise UserError(
                "T5Config.prefix_attention is for decoder-only models, got num_encoder_layers="
                f"{self.num_encoder_layers}"
            )
        choose("T5Config.dtype", self.dtype, DTYPES)
        choose("T5Config.remat", self.remat, REMAT_POLICIES)
        # A list, as gin files may have it, could not be part of a compiled program's identity.
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        if not self.mlp_activations:
            raise UserError("T5Config.mlp_activations must name at least one activation, got none")
        for name in self.mlp_activations:
            choose("T5Config.mlp_activations", name, ACTIVATIONS)

    @property
    def compute_dtype(self) -> DTypeLike:
        """The dtype of activations."""
        return DTYPES[self.dtype]

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

"""The shape of a T5 network and the choices that are part of its program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from t5lite.core.errors import UserError, choose
from t5lite.core.numbers import Number, check_number

DTYPES: dict[str, DTypeLike] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# GELU is the tanh approximation, which published T5 checkpoints were trained with.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}

# What the forward pass keeps for the backward pass; "none" keeps all.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes and choices of one encoder-decoder or decoder-only T5.

    Args:
        vocab_size: rows of the embedding and of the logits; at least the vocabulary's size.
        embed_dim: model width.
        num_heads: attention heads; times `head_dim` need not equal `embed_dim`.
        head_dim: width of one head.
        mlp_dim: feed-forward width.
        num_decoder_layers: layers of the decoder.
        num_encoder_layers: layers of the encoder; 0 for a decoder-only model.
        mlp_activations: `("relu",)` in T5 1.0; `("gelu", "linear")`, a gated GELU, since T5 1.1.
        dropout_rate: in [0, 1). A number is an input of the compiled step; 0 compiles none in.
        num_buckets, max_distance: of the relative position bias.
        norm_epsilon: added to the mean of squares in RMS norm.
        tied_logits: whether the output layer is the embedding (T5 1.0) or a kernel of its own.
        prefix_attention: whether a decoder-only model sees the inputs of an example as a whole
            (prefix language model) or each place only what is before it.
        dtype: of the computation, "bfloat16" or "float32"; parameters are always float32.
        remat: what the backward pass computes again: "none", "minimal" (all but matrix
            products) or "full".
        scan_unroll: layers in one turn of the loop over layers; 1 compiles fastest.

    Raises:
        UserError: for a size under 1, a rate outside [0, 1) or an unknown name.
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_decoder_layers: int
    num_encoder_layers: int = 0
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    dropout_rate: Number = 0.0
    num_buckets: int = 32
    max_distance: int = 128
    norm_epsilon: float = 1e-6
    tied_logits: bool = False
    prefix_attention: bool = False
    dtype: str = "bfloat16"
    remat: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and not (
                isinstance(value, int) and value >= (field.name != "num_encoder_layers")
            ):
                raise UserError(f"T5Config.{field.name} must be a whole number > 0, got {value!r}")
        check_number(
            "T5Config.dropout_rate", self.dropout_rate, "in [0, 1)", lambda rate: 0 <= rate < 1
        )
        if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 2:
            raise UserError(
                "T5Config.num_buckets must be divisible by 4 and at most twice max_distance - 1, "
                f"got num_buckets={self.num_buckets}, max_distance={self.max_distance}"
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

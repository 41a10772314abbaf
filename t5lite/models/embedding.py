"""Embeddings of tokens and of what is known of them, and the logits that are tied to tokens."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5lite.models.adapters import Axis
from t5lite.models.config_fields import T5Fields
from t5lite.models.initializers import ConstantInit, Initializer, NormalInit, ScaledInit, parameter
from t5lite.models.linear import linear


def embedding_init(config: T5Fields) -> Initializer:
    """Returns the initialiser of embeddings.

    Its standard deviation is 1, or 1 / sqrt(embed) if logits are tied to them without a scale, so
    that logits start with a variance of 1.
    """
    if config.tied_logits and not config.scale_tied_logits:
        return ScaledInit(1.0, "normal", in_axes=(1,), out_axes=(0,))
    return NormalInit()


class Embedding(nn.Module):
    """Token embeddings, looked up by a gather.

    Parameters:
        embedding [vocab, embed], by `embedding_init`; end_of_image [embed], zeros, with
        `end_of_image_token`.
    """

    config: T5Fields

    def setup(self) -> None:
        init = parameter(embedding_init(self.config), ("vocab", "embed"))
        shape = (self.config.vocab_size, self.config.embed_dim)
        self.embedding: Any = self.param("embedding", init, shape)
        if self.config.end_of_image_token is not None:
            zeros = parameter(ConstantInit(0.0), ("embed",))
            self.end_of_image: Any = self.param("end_of_image", zeros, shape[1:])

    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l e"]:
        # Gather first, cast after: casting the table would touch all of its rows.
        x = jnp.take(self.embedding, tokens, axis=0).astype(self.config.compute_dtype)
        if self.config.scale_embeddings:
            # NOTE: Gemma rounds the factor to the dtype of the activations.
            x = x * jnp.sqrt(jnp.float32(self.config.embed_dim)).astype(x.dtype)
        if self.config.end_of_image_token is not None:
            ends = (tokens == self.config.end_of_image_token)[..., None]
            x = jnp.where(ends, self.end_of_image.astype(x.dtype)[None, None], x)
        return x

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """The tied output layer, in float32; T5 1.0's is scaled by 1 / sqrt(embed)."""
        x = x.astype(jnp.float32)
        if self.config.scale_tied_logits:
            # Scaled before the product, because there are fewer numbers.
            x = x / jnp.sqrt(jnp.float32(self.config.embed_dim))
        # Transposed here and not in the einsum, whose gradient would copy that of all logits.
        return linear("ble,ev->blv", x, self.embedding.T)


def offsets_name(stack: str) -> str:
    """Returns the name in a batch of what is added to the embedded tokens of a stack."""
    return f"{stack}_embedding_offsets"


class LookupTable(nn.Module):
    """Vectors that are added to those of tokens: of their positions, or of their types.

    Parameters:
        embedding [rows, activation_embed], by `embedding_init`. The table is small, so no mesh axis
        splits its width: rows of a batch are split over the same axes, and looking up would gather
        activations instead.
    """

    config: T5Fields
    rows: Axis

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l e"]:
        init = parameter(embedding_init(self.config), (self.rows.name, "activation_embed"))
        table: Any = self.param("embedding", init, (self.rows.size, self.config.embed_dim))
        # NOTE: the vector of an id outside of the table is NaN.
        return jnp.take(table, ids, axis=0).astype(self.config.compute_dtype)

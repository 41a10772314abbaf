"""Token embeddings, and the logits that are tied to them."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5lite.models.config_fields import T5Fields
from t5lite.models.initializers import NormalInit, parameter
from t5lite.models.linear import linear


class Embedding(nn.Module):
    """Token embeddings, looked up by a gather.

    Parameters:
        embedding [vocab, embed], normal with standard deviation 1.
    """

    config: T5Fields

    def setup(self) -> None:
        init = parameter(NormalInit(), ("vocab", "embed"))
        shape = (self.config.vocab_size, self.config.embed_dim)
        self.embedding: Any = self.param("embedding", init, shape)

    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l e"]:
        # Gather first, cast after: casting the table would touch all of its rows.
        return jnp.take(self.embedding, tokens, axis=0).astype(self.config.compute_dtype)

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """The tied output layer of T5 1.0, in float32, scaled by 1 / sqrt(embed)."""
        # Scaled before the product, because there are fewer numbers.
        x = x.astype(jnp.float32) / jnp.sqrt(jnp.float32(self.config.embed_dim))
        # Transposed here and not in the einsum, whose gradient would copy that of all logits.
        return linear("ble,ev->blv", x, self.embedding.T)

"""Multi-head attention as T5 does it: no 1/sqrt(d), an additive bias, no biases in the maps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from t5lite.core.numbers import Number
from t5lite.models.config import T5Config
from t5lite.models.layers import Dropout, Linear

# Finite, so that the softmax of a query with no key to attend to is not NaN; see `attend`.
MASKED_SCORE = -1e10


def attention_weights(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    *,
    bias: Float[Array, "#b h q k"] | None = None,
    mask: Bool[Array, "#b 1 q k"] | None = None,
) -> Float[Array, "b h q k"]:
    """Returns the softmax over keys of query . key + bias, in float32; 0 where masked.

    Scores are not divided by sqrt(d): T5 puts that factor into the initial query kernel.

    Differs from T5X, which by default takes the softmax in the dtype of the activations.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED_SCORE)
    return jax.nn.softmax(scores, axis=-1)


def attend(
    weights: Float[Array, "b h q k"],
    value: Float[Array, "b k h d"],
    *,
    mask: Bool[Array, "#b 1 q k"] | None = None,
) -> Float[Array, "b q h d"]:
    """Returns the average of the values under the weights; 0 for a query with no key to attend to.

    Such is a target whose input is empty: in a row with other examples it must not see theirs.

    Differs from T5X, where it is the average of all values, of padding or other examples.
    """
    average = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
    if mask is None:
        return average
    has_key = mask.any(axis=-1)[:, 0, :, None, None]
    return jnp.where(has_key, average, jnp.zeros([], average.dtype))


class Attention(nn.Module):
    """Attention of `x` to `source` (to itself in self-attention).

    Parameters:
        query/kernel [embed, heads, kv], normal with variance 1 / (embed * kv).
        key/kernel, value/kernel [embed, heads, kv], normal with variance 1 / embed.
        out/kernel [heads, kv, embed], normal with variance 1 / (heads * kv).
    """

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b q e"],
        source: Float[Array, "b k e"],
        *,
        bias: Float[Array, "#b h q k"] | None,
        mask: Bool[Array, "#b 1 q k"] | None,
        dropout_rate: Number | None,
    ) -> Float[Array, "b q e"]:
        config = self.config
        shape = (config.embed_dim, config.num_heads, config.head_dim)
        axes = ("embed", "heads", "kv")

        def heads(name: str, of: Float[Array, "b l e"], scale: float) -> Float[Array, "b l h d"]:
            init = nn.initializers.variance_scaling(scale, "fan_in", "normal", 0, (1, 2))
            projected = Linear("ble,ehd->blhd", shape, axes, init, name=name)(of)
            return nn.with_logical_constraint(projected, ("batch", "length", "heads", "kv"))

        query = heads("query", x, 1.0 / config.head_dim)
        key, value = heads("key", source, 1.0), heads("value", source, 1.0)
        weights = attention_weights(query, key, bias=bias, mask=mask)
        weights = Dropout(name="dropout")(weights, dropout_rate)
        attended = attend(weights, value, mask=mask)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", (0, 1), 2)
        out_shape, out_axes = (*shape[1:], shape[0]), (*axes[1:], axes[0])
        return Linear("blhd,hde->ble", out_shape, out_axes, init, name="out")(attended)

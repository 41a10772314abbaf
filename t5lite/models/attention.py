"""Multi-head attention as T5 does it: no 1/sqrt(d), an additive bias, no biases in the maps."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from t5lite.core.numbers import Number
from t5lite.models.config import T5Config
from t5lite.models.initializers import Scaled
from t5lite.models.layers import Linear, dropout
from t5lite.models.positions import Places, rotate

# Finite, so that the softmax of a query with no key to attend to is not NaN; see `attend`.
MASKED_SCORE = -1e10


class KeysValues(NamedTuple):
    """What queries attend to; one head of it may serve several heads of queries."""

    key: Float[Array, "b k g d"]
    value: Float[Array, "b k g d"]


def attention_weights(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    *,
    bias: Float[Array, "#b h q k"] | None = None,
    mask: Bool[Array, "#b 1 q k"] | None = None,
) -> Float[Array, "b h q k"]:
    """Returns the softmax over keys of query . key + bias, in float32; 0 where masked, unless all
    keys of a query are, as `attend` sees to.

    Scores are not divided by sqrt(d): T5 puts that factor into the initial query kernel. Query
    head i attends to the keys of head i * g // h.

    Differs from T5X, which by default takes the softmax in the dtype of the activations.
    """
    (b, q, h, d), g = query.shape, key.shape[2]
    if g == h:
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    else:
        grouped = query.reshape(b, q, g, h // g, d)
        scores = jnp.einsum("bqgrd,bkgd->bgrqk", grouped, key, preferred_element_type=jnp.float32)
        scores = scores.reshape(b, h, q, key.shape[1])
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED_SCORE)
    return jax.nn.softmax(scores, axis=-1)


def attend(
    weights: Float[Array, "b h q k"],
    value: Float[Array, "b k g d"],
    *,
    mask: Bool[Array, "#b 1 q k"] | None = None,
) -> Float[Array, "b q h d"]:
    """Returns the average of the values under the weights; 0 for a query with no key to attend to.

    Such is a target whose input is empty: in a row with other examples it must not see theirs.

    Differs from T5X, where it is the average of all values, of padding or other examples.
    """
    (b, h, q, k), (g, d) = weights.shape, value.shape[2:]
    weights = weights.astype(value.dtype)
    if g == h:
        average = jnp.swapaxes(jnp.einsum("bhqk,bkhd->bhqd", weights, value), 1, 2)
    else:
        grouped = weights.reshape(b, g, h // g, q, k)
        average = jnp.einsum("bgrqk,bkgd->bqgrd", grouped, value).reshape(b, q, h, d)
    if mask is None:
        return average
    has_key = mask.any(axis=-1)[:, 0, :, None, None]
    return jnp.where(has_key, average, jnp.zeros([], average.dtype))


class Attention(nn.Module):
    """Attention of queries made from one sequence to keys and values made from one.

    Parameters:
        query/kernel [embed, heads, kv], normal with variance 1 / (embed * kv).
        key/kernel, value/kernel [embed, heads, kv], normal with variance 1 / embed.
        out/kernel [heads, kv, embed], normal with variance 1 / (heads * kv).

    Args:
        has_positions: whether queries and keys are places in one sequence, so that rotary positions
            turn them.
    """

    config: T5Config
    has_positions: bool = True

    def setup(self) -> None:
        config = self.config

        def heads(count: int, scale: float) -> Linear:
            shape = (config.embed_dim, count, config.head_dim)
            init = Scaled(scale, "normal", in_axes=(0,), out_axes=(1, 2))
            return Linear("ble,ehd->blhd", shape, ("embed", "heads", "kv"), init)

        self.query = heads(config.num_heads, 1.0 / config.head_dim)
        self.key, self.value = heads(config.kv_heads, 1.0), heads(config.kv_heads, 1.0)
        init = Scaled(1.0, "normal", in_axes=(0, 1), out_axes=(2,))
        shape = (config.num_heads, config.head_dim, config.embed_dim)
        self.out = Linear("blhd,hde->ble", shape, ("heads", "kv", "embed"), init)

    def queries(
        self, x: Float[Array, "b q e"], places: Places | None = None
    ) -> Float[Array, "b q h d"]:
        """Returns the queries of `x`, whose tokens stand at `places`; None for one by one."""
        return self._turned(_by_head(self.query(x)), places)

    def keys_values(
        self, source: Float[Array, "b k e"], places: Places | None = None
    ) -> KeysValues:
        """Returns the keys and values of `source`, whose tokens stand at `places`."""
        key, value = (_by_head(part(source), "key_length") for part in (self.key, self.value))
        return KeysValues(self._turned(key, places), value)

    def __call__(
        self,
        query: Float[Array, "b q h d"],
        source: KeysValues,
        *,
        bias: Float[Array, "#b h q k"] | None,
        mask: Bool[Array, "#b 1 q k"] | None,
        dropout_rate: Number | None,
    ) -> Float[Array, "b q h d"]:
        """Returns for each query what it attends to, by head."""
        rng = None if dropout_rate is None else self.make_rng("dropout")
        attended = _attended
        if self.config.remat == "attention":
            attended = jax.checkpoint(attended)
        return attended(query, source, bias, mask, dropout_rate, rng)

    def _turned(
        self, heads: Float[Array, "b l h d"], places: Places | None
    ) -> Float[Array, "b l h d"]:
        if self.config.positions != "rotary" or not self.has_positions:
            return heads
        places = np.arange(heads.shape[1]) if places is None else places
        return rotate(heads, places, self.config.rotary_base)


def _attended(
    query: Float[Array, "b q h d"],
    source: KeysValues,
    bias: Float[Array, "#b h q k"] | None,
    mask: Bool[Array, "#b 1 q k"] | None,
    dropout_rate: Number | None,
    rng: Key[Array, ""] | None,
) -> Float[Array, "b q h d"]:
    weights = attention_weights(query, source.key, bias=bias, mask=mask)
    if rng is not None:
        weights = dropout(weights, dropout_rate, rng)
    return attend(weights, source.value, mask=mask)


def _by_head(x: Float[Array, "b l h d"], length: str = "length") -> Float[Array, "b l h d"]:
    return nn.with_logical_constraint(x, ("batch", length, "heads", "kv"))

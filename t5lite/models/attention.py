"""Attention as a function of queries, keys and values, looked up by name.

To add an implementation, write a function with the signature of `AttentionFunction` and name it as
`T5Config.attention = "module:function"`, or add a row to `ATTENTION`. It serves self-attention,
cross-attention, local attention and attention to a cache.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from t5lite.core.numbers import Number
from t5lite.models.dropout import dropout
from t5lite.models.masks import AttentionMask
from t5lite.models.relative_bias import AttentionBias

# Finite, so that the softmax of a query without visible keys is not NaN; see `attend`.
MASKED_SCORE = -1e10

_F = TypeVar("_F", bound=Callable[..., Any])


@runtime_checkable
class AttentionFunction(Protocol):
    """Returns for each query and head the average of the values of the keys that it attends to.

    The weights are the softmax over visible keys of soft_cap(scale * query . key) + bias, and are
    dropped out; query head i reads the key head i * g // h. A query without visible keys gets 0.
    Mask and bias are data, `AttentionMask` and `RelativeBias`; see there for how to build them for
    a block of keys.

    A function may have an attribute `prepare(mask, bias, query_length, key_length)`, which returns
    mask and bias in another form. It is called once for a stack, outside of the loop over layers.
    """

    def __call__(
        self,
        query: Float[Array, "b q h d"],
        key: Float[Array, "b k g d"],
        value: Float[Array, "b k g d"],
        *,
        mask: AttentionMask,
        bias: AttentionBias | None,
        scale: float,
        soft_cap: float | None,
        dropout_rate: Number | None,
        dropout_key: Key[Array, ""] | None,
    ) -> Float[Array, "b q h d"]: ...


def prepared(
    function: AttentionFunction,
    mask: AttentionMask,
    bias: AttentionBias | None,
    query_length: int,
    key_length: int,
) -> tuple[AttentionMask, AttentionBias | None]:
    """Returns mask and bias in the form in which `function` takes them in each layer."""
    prepare = getattr(function, "prepare", None)
    if prepare is None:
        return mask, bias
    ready: tuple[AttentionMask, AttentionBias | None] = prepare(
        mask, bias, query_length, key_length
    )
    return ready


def _with_prepare(prepare: Callable[..., Any]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        function.prepare = prepare  # type: ignore[attr-defined]  # functions take attributes
        return function

    return decorate


def _materialised(
    mask: AttentionMask, bias: AttentionBias | None, query_length: int, key_length: int
) -> tuple[AttentionMask, AttentionBias | None]:
    dense = AttentionMask(visible=mask.to_array(query_length, key_length))
    if bias is not None:
        bias = bias.materialised(query_length, key_length)
    return dense, bias


@_with_prepare(_materialised)
def reference_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    *,
    mask: AttentionMask,
    bias: AttentionBias | None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    dropout_rate: Number | None = None,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "b q h d"]:
    """The attention that all others are compared with; it materialises mask, bias and weights."""
    lengths = query.shape[1], key.shape[1]
    visible = mask.to_array(*lengths)
    weights = attention_weights(
        query,
        key,
        bias=None if bias is None else bias.to_array(*lengths),
        mask=visible,
        scale=scale,
        soft_cap=soft_cap,
    )
    if dropout_key is not None:
        weights = dropout(weights, dropout_rate, dropout_key)
    return attend(weights, value, mask=visible)


ATTENTION: Mapping[str, AttentionFunction] = {"reference": reference_attention}


def attention_weights(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    *,
    bias: Float[Array, "#b h q k"] | None = None,
    mask: Bool[Array, "#b 1 q k"] | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
) -> Float[Array, "b h q k"]:
    """Returns the softmax over keys of soft_cap(scale * query . key) + bias, in float32.

    Masked keys have a weight of 0, unless all keys of a query are masked; see `attend`. T5 has no
    scale: the factor 1 / sqrt(d) is in the initial query kernel. Query head i attends to the keys
    of head i * g // h.

    Differs from T5X, which by default takes the softmax in the dtype of the activations.
    """
    b, q, h, d = query.shape
    g = key.shape[2]
    if g == h:
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    else:
        grouped = query.reshape(b, q, g, h // g, d)
        scores = jnp.einsum("bqgrd,bkgd->bgrqk", grouped, key, preferred_element_type=jnp.float32)
        scores = scores.reshape(b, h, q, key.shape[1])
    if scale != 1.0:
        scores = scores * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
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
    """Returns the average of the values under the weights; 0 for a query without visible keys.

    Such a query is a target whose input is empty: in a packed row it must not see the inputs of
    other examples.

    Differs from T5X, where it is the average of all values, those of padding and other examples
    included.
    """
    b, h, q, k = weights.shape
    g, d = value.shape[2:]
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

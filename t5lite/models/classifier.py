"""Logits of classes instead of tokens."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5lite.core.fields import field_error
from t5lite.models.config_fields import T5Fields
from t5lite.models.initializers import ConstantInit, ScaledInit, parameter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes that an encoder decides between, instead of tokens.

    Args:
        count: of classes.
        per_token: whether every token gets a class (tagging), or the mean over an example's tokens
            gets one (classification), which is repeated at each of them.
    """

    count: int
    per_token: bool

    def __post_init__(self) -> None:
        if self.count < 2:
            raise field_error(self, "count", "at least 2")


class Classifier(nn.Module):
    """An affine map to the logits of classes, in float32.

    Parameters:
        kernel [embed, classes], truncated normal with variance 1 / embed; bias [classes], zeros.
    """

    config: T5Fields
    count: int

    @nn.compact
    def __call__(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        init = parameter(ScaledInit(1.0, "truncated_normal"), ("embed", "classes"))
        kernel = self.param("kernel", init, (self.config.embed_dim, self.count))
        bias: Any = self.param("bias", parameter(ConstantInit(0.0), ("classes",)), (self.count,))
        return jnp.einsum("ble,ev->blv", x.astype(jnp.float32), kernel) + bias[None, None]


def mean_of_segments(
    x: Float[Array, "b l e"], segment_ids: Int[Array, "b l"]
) -> Float[Array, "b l e"]:
    """Returns at each token the mean over the tokens of its example; 0 for padding.

    >>> x = jnp.array([[[1.0], [3.0], [5.0], [7.0]]])
    >>> mean_of_segments(x, jnp.array([[1, 1, 2, 0]]))[0, :, 0].tolist()
    [2.0, 2.0, 5.0, 0.0]
    """
    count = segment_ids.shape[1] + 1

    def of_row(row: Float[Array, "l e"], ids: Int[Array, "l"]) -> Float[Array, "l e"]:
        is_token = (ids > 0).astype(jnp.float32)[:, None]
        sums = jax.ops.segment_sum(row.astype(jnp.float32) * is_token, ids, count)
        tokens = jax.ops.segment_sum(is_token, ids, count)
        return (sums / jnp.maximum(tokens, 1.0))[ids]

    return jax.vmap(of_row)(x, segment_ids).astype(x.dtype)

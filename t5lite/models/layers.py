"""The small parts that every layer is made of: linear map, RMS norm, embedding, dropout."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from t5lite.core.numbers import Number
from t5lite.models.config import LINEAR, T5Config
from t5lite.models.initializers import Constant, Initializer, Normal, parameter


def rms_norm(
    x: Float[Array, "*shape e"], scale: Float[Array, "e"], epsilon: float
) -> Float[Array, "*shape e"]:
    """Divides by the root of the mean of squares, taken in float32, then scales; no mean, no bias.

    >>> rms_norm(jnp.array([3.0, -3.0]), jnp.array([1.0, 2.0]), 1e-6).round(3).tolist()
    [1.0, -2.0]
    """
    wide = x.astype(jnp.float32)
    mean_of_squares = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = (wide * jax.lax.rsqrt(mean_of_squares + epsilon)).astype(x.dtype)
    return normed * jnp.expand_dims(scale.astype(x.dtype), tuple(range(x.ndim - 1)))


def dropout(x: Float[Array, "*shape"], rate: Number, key: Key[Array, ""]) -> Float[Array, "*shape"]:
    """Zeroes with probability `rate` and scales what is kept by 1 / (1 - rate).

    One mask serves all positions of the second last axis, as in T5X: a [length, length] matrix of
    attention weights or a [length, embed] activation costs one row of random numbers.
    """
    shape = (*x.shape[:-2], 1, x.shape[-1])
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


class Dropout(nn.Module):
    """`dropout` with the key of the stream "dropout"; nothing at all for a rate of None."""

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], rate: Number | None) -> Float[Array, "*shape"]:
        return x if rate is None else dropout(x, rate, self.make_rng("dropout"))


class RMSNorm(nn.Module):
    """`rms_norm` with its scale.

    Parameters:
        scale [embed], ones.
    """

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "*shape e"]) -> Float[Array, "*shape e"]:
        scale: Any = self.param("scale", parameter(Constant(1.0), ("embed",)), (x.shape[-1],))
        return rms_norm(x, scale, self.config.norm_epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear(einsum: str, x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns einsum(x, kernel) in the dtype of x; the kernel's gradient is summed in its own.

    NOTE: the gradient is written out because the one that JAX derives computes the kernel's
    transposed, for which XLA on CPUs copies activations into another layout.
    """
    return jnp.einsum(einsum, x, kernel.astype(x.dtype))


def _linear_forward(einsum: str, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return linear(einsum, x, kernel), (x, kernel)


def _linear_backward(einsum: str, kept: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = kept
    operands, out_axes = einsum.split("->")
    x_axes, kernel_axes = operands.split(",")
    to_x = jnp.einsum(f"{out_axes},{kernel_axes}->{x_axes}", grad, kernel.astype(x.dtype))
    to_kernel = jnp.einsum(
        f"{x_axes},{out_axes}->{kernel_axes}", x, grad, preferred_element_type=kernel.dtype
    )
    return to_x, to_kernel


linear.defvjp(_linear_forward, _linear_backward)


class Linear(nn.Module):
    """A linear map without bias, as an einsum in the dtype of its input.

    Parameters:
        kernel `shape` with the logical axes `axes`, initialised by `initializer`.
    """

    einsum: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    initializer: Initializer

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        init = parameter(self.initializer, self.axes)
        made = linear(self.einsum, x, self.param("kernel", init, self.shape))
        return checkpoint_name(made, LINEAR)


class Embedding(nn.Module):
    """Token embeddings, looked up by a gather.

    Parameters:
        embedding [vocab, embed], normal with standard deviation 1.
    """

    config: T5Config

    def setup(self) -> None:
        init = parameter(Normal(), ("vocab", "embed"))
        shape = (self.config.vocab_size, self.config.embed_dim)
        self.embedding: Any = self.param("embedding", init, shape)

    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l e"]:
        # Gather first, cast after: casting the table would touch all of its rows.
        return jnp.take(self.embedding, tokens, axis=0).astype(self.config.compute_dtype)

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """The tied output layer of T5 1.0, in float32, scaled by 1 / sqrt(embed)."""
        # Scaled before the product, where there are fewer numbers.
        x = x.astype(jnp.float32) / jnp.sqrt(jnp.float32(self.config.embed_dim))
        # Transposed here and not in the einsum, whose gradient would copy that of all logits.
        return linear("ble,ev->blv", x, self.embedding.T)

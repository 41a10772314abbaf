"""An attention implementation from outside the package: it visits the keys a block at a time.

Mask and bias are built for one block of keys from the data, so no array has as many elements as
there are pairs of queries and keys. The softmax is accumulated online, as in flash attention.
"""

import functools

import jax
import jax.numpy as jnp

BLOCK = 4
# What a block of scores is computed for, so that a test can check that none covers all keys.
block_sizes = set()


def attention(
    query, key, value, *, mask, bias, scale, soft_cap, dropout_rate=None, dropout_key=None
):
    (b, q, h, d), (k, g) = query.shape, key.shape[1:3]
    query = query.reshape(b, q, g, h // g, d)

    @functools.partial(jax.checkpoint, static_argnums=(0,))
    def visit(start, carry, query, key, value, mask, bias):
        largest, total, weighted = carry
        size = min(BLOCK, k - start)
        block_sizes.add(size)
        scores = jnp.einsum("bqgrd,bkgd->bgrqk", query, key[:, start : start + size])
        scores = scores.astype(jnp.float32).reshape(b, h, q, size) * scale
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        if bias is not None:
            scores += bias.keys(start, size).to_array(q, size).astype(jnp.float32)
        visible = mask.keys(start, size).to_array(q, size)
        visible = jnp.ones((1, 1, q, size), bool) if visible is None else visible
        scores = jnp.where(visible, scores, -1e30)
        new_largest = jnp.maximum(largest, scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - new_largest) * visible
        correction = jnp.exp(largest - new_largest)
        total = total * correction + weights.sum(axis=-1, keepdims=True)
        if dropout_key is not None:
            block_key = jax.random.fold_in(dropout_key, start)
            keep = jax.random.bernoulli(block_key, 1.0 - dropout_rate, (b, h, 1, size))
            weights = weights * keep / (1.0 - dropout_rate)
        grouped = weights.reshape(b, g, h // g, q, size).astype(value.dtype)
        update = jnp.einsum("bgrqk,bkgd->bgrqd", grouped, value[:, start : start + size])
        weighted = weighted * correction + update.reshape(b, h, q, d)
        return new_largest, total, weighted

    carry = (
        jnp.full((b, h, q, 1), -1e30),
        jnp.zeros((b, h, q, 1)),
        jnp.zeros((b, h, q, d)),
    )
    for start in range(0, k, BLOCK):
        carry = visit(start, carry, query, key, value, mask, bias)
    _, total, weighted = carry
    # A query without visible keys gets 0.
    average = jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), 0.0)
    return jnp.swapaxes(average, 1, 2).astype(value.dtype)

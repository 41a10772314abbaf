"""LongT5's encoder attention: to tokens nearby, and to summaries of blocks of tokens.

Queries are cut into blocks of `local_radius` + 1 tokens. The keys of a block are those of the block
and of its neighbours, so that the cost grows with the length and not with its square.

Source: Guo et al., "LongT5: Efficient Text-To-Text Transformer for Long Sequences", section 3.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.numbers import Number
from t5lite.models.attention_layer import (
    Attention,
    AttentionContext,
    KeysValues,
    prepared_context,
)
from t5lite.models.config_fields import T5Fields
from t5lite.models.masks import AttentionMask
from t5lite.models.positions import positions_in_examples
from t5lite.models.relative_bias import DenseBias, RelativePositionBias
from t5lite.models.token_adapters import ENCODER_ATTENTION, prefix_length


class LongContext(NamedTuple):
    """What all layers of an encoder know of a batch.

    `attention` has a row for each block of queries. `summed` is 1 for a token that is part of the
    sum that makes a global token; None without global tokens.
    """

    attention: AttentionContext
    summed: Float[Array, "rows l global"] | None = None


def in_blocks(x: Array, size: int) -> Array:
    """Returns [b, l, ...] as [b * blocks, size, ...], the last block padded with zeros.

    >>> in_blocks(jnp.array([[1, 2, 3]]), 2).tolist()
    [[1, 2], [3, 0]]
    """
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2)))
    return padded.reshape(-1, size, *x.shape[2:])


def with_neighbours(x: Array, size: int) -> Array:
    """Returns each block of `in_blocks` with both neighbours, [b * blocks, 3 * size, ...].

    >>> with_neighbours(jnp.array([[1, 2, 3]]), 2).tolist()
    [[0, 0, 1, 2, 3, 0], [1, 2, 3, 0, 0, 0]]
    """
    blocks = in_blocks(x, size).reshape(x.shape[0], -1, size, *x.shape[2:])
    around = jnp.pad(blocks, ((0, 0), (1, 1), *((0, 0),) * (blocks.ndim - 2)))
    count = blocks.shape[1]
    three = jnp.concatenate([around[:, i : i + count] for i in range(3)], axis=2)
    return three.reshape(-1, 3 * size, *x.shape[2:])


def blocks_of_tokens(is_token: Bool[Array, "b l"], size: int) -> Int[Array, "b l"]:
    """Returns the block that each token is summed in, -1 for none.

    Only blocks full of tokens are summed; the tokens after the last one belong to it.

    >>> blocks_of_tokens(jnp.array([[True] * 5 + [False]]), 2).tolist()
    [[0, 0, 1, 1, 1, -1]]
    """
    position = np.arange(is_token.shape[1])
    is_end = jnp.asarray(position % size == size - 1)[None]
    last = jnp.sum(is_token & is_end, axis=1, keepdims=True) - 1
    return jnp.where(is_token, jnp.minimum(jnp.asarray(position // size)[None], last), -1)


def long_context(
    config: T5Fields,
    segment_ids: Int[Array, "b l"],
    relpos_bias: RelativePositionBias,
    side_relpos_bias: RelativePositionBias | None,
) -> LongContext:
    """Returns the context of local attention; with `side_relpos_bias`, of global tokens too."""
    radius = config.local_radius
    block = radius + 1
    lengths = block, 3 * block
    prefix = prefix_length(config.adapters, ENCODER_ATTENTION)
    in_examples = None
    if prefix:
        in_examples = in_blocks(positions_in_examples(segment_ids), block)
    mask = AttentionMask(
        query_segment_ids=in_blocks(segment_ids, block),
        key_segment_ids=with_neighbours(segment_ids, block),
        query_positions=np.arange(block, 2 * block),
        window=(radius, radius),
    )
    bias = relpos_bias(distance_limit=3 * block, query_offset=block)
    count = segment_ids.shape[1] // config.global_block_size
    if side_relpos_bias is None or count == 0:
        with_prefix = relpos_bias.with_prefix(
            bias, prefix, in_examples, limit=segment_ids.shape[1], key_length=lengths[1]
        )
        return LongContext(prepared_context(config, mask, with_prefix, *lengths, prefix))

    is_token = segment_ids > 0
    blocks = blocks_of_tokens(is_token, config.global_block_size)
    summed = jax.nn.one_hot(blocks, count, dtype=config.compute_dtype)
    offset = jnp.arange(count)[None, None] - blocks[..., None]
    values = side_relpos_bias(count + 1).values(np.arange(1 - count, count + 1))
    side_bias = jnp.moveaxis(jnp.take(values, offset + count - 1, axis=1), 0, 2)
    is_global = jnp.arange(count)[None, None] <= blocks.max(axis=1)[:, None, None]
    side_mask = is_token[:, :, None] & is_global
    near_mask = mask.to_array(*lengths)
    near_bias = bias.to_array(*lengths)
    assert near_mask is not None
    visible = jnp.concatenate([near_mask, in_blocks(side_mask, block)[:, None]], axis=3)
    scores = jnp.concatenate(
        [
            jnp.broadcast_to(near_bias, (near_mask.shape[0], *near_bias.shape[1:])),
            jnp.swapaxes(in_blocks(side_bias, block), 1, 2),
        ],
        axis=3,
    )
    # The bias on global tokens depends on the row, which a `RelativeBias` cannot express.
    lengths = block, 3 * block + count
    with_prefix = relpos_bias.with_prefix(
        DenseBias(array=scores),
        prefix,
        in_examples,
        limit=segment_ids.shape[1],
        key_length=lengths[1],
    )
    dense = AttentionMask(visible=visible)
    return LongContext(prepared_context(config, dense, with_prefix, *lengths, prefix), summed)


def long_attention(
    attention: Attention,
    global_norm: nn.Module | None,
    x: Float[Array, "b l e"],
    context: LongContext,
    *,
    dropout_rate: Number | None,
) -> Float[Array, "b l h d"]:
    """Returns for each token and head the average of the values that it attends to."""
    rows, length, _ = x.shape
    block = attention.config.local_radius + 1
    near = KeysValues(*(with_neighbours(part, block) for part in attention.keys_values(x)))
    if context.summed is not None and global_norm is not None:
        sums = jnp.einsum("ble,blg->bge", x, context.summed)
        side = attention.keys_values(global_norm(sums))
        blocks = near.key.shape[0] // rows
        near = KeysValues(
            *(
                jnp.concatenate([part, jnp.repeat(every, blocks, axis=0)], axis=1)
                for part, every in zip(near, side, strict=True)
            )
        )
    near = attention.after_prefix(near)
    queries = in_blocks(attention.queries(x), block)
    attended = attention(queries, near, context.attention, dropout_rate=dropout_rate)
    return attended.reshape(rows, -1, *attended.shape[2:])[:, :length]

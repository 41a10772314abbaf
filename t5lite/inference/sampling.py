"""Writing token after token: the likeliest each time, or samples."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from t5lite.core.streams import stream
from t5lite.inference.decoding import (
    Decoding,
    Writer,
    Written,
    is_any_of,
    read_on,
    read_prompt,
    repeated,
    without,
)
from t5lite.inference.filters import keep_top_k, keep_top_p
from t5lite.models.architectures import Batch


def sample(
    model: Writer,
    params: Any,
    batch: Batch,
    decoding: Decoding,
    *,
    length: int,
    stop_ids: Sequence[int],
    keys: Key[Array, "b"],
) -> Written:
    """Returns `num_samples` targets of each row, the likeliest first; meant to be compiled.

    Args:
        batch: see `decoding.read_prompt`.
        length: tokens at most.
        stop_ids: tokens that end a target.
        keys: one for each row, on which alone its samples depend.
    """
    count, rows = decoding.num_samples, keys.shape[0]
    logits, cache = read_prompt(model, params, batch, length=length)
    many = rows * count
    logits, cache = jnp.repeat(logits, count, axis=0), repeated(cache, count)
    ways = jnp.tile(jnp.arange(count), rows)
    keys = jax.vmap(lambda key, way: stream(key, "sample", way))(jnp.repeat(keys, count), ways)

    def of_each(number: Any) -> Array:
        return jnp.repeat(jnp.broadcast_to(jnp.asarray(number), (rows,)), count)

    least = of_each(decoding.min_length)
    most = of_each(length if decoding.max_length is None else decoding.max_length)
    most = jnp.minimum(most, length)

    def go_on(carry: Any) -> Array:
        place, _, _, _, ended, _ = carry
        return (place < length) & ~jnp.all(ended)

    def write(carry: Any) -> Any:
        place, logits, tokens, total, ended, cache = carry
        allowed = without(logits, stop_ids, place < least)
        token = _chosen(allowed, decoding, of_each, place, keys)
        told = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), token[:, None], axis=1)
        token = jnp.where(ended, 0, token)
        total = total + jnp.where(ended, 0.0, told[:, 0])
        tokens = tokens.at[:, place].set(token)
        ended = ended | is_any_of(token, stop_ids) | (place + 1 >= most)
        logits, cache = read_on(model, params, token, cache)
        return place + 1, logits, tokens, total, ended, cache

    start = (
        *(jnp.zeros([], jnp.int32), logits, jnp.zeros((many, length), jnp.int32)),
        *(jnp.zeros(many), jnp.zeros(many, bool), cache),
    )
    _, _, tokens, total, _, _ = jax.lax.while_loop(go_on, write, start)
    tokens, total = tokens.reshape(rows, count, length), total.reshape(rows, count)
    order = jnp.argsort(-total, axis=1)
    tokens = jnp.take_along_axis(tokens, order[..., None], axis=1)
    total = jnp.take_along_axis(total, order, axis=1)
    return Written(tokens, total, total)


def _chosen(
    logits: Float[Array, "b v"],
    decoding: Decoding,
    of_each: Any,
    place: Int[Array, ""],
    keys: Key[Array, "b"],
) -> Int[Array, "b"]:
    if decoding.temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / of_each(decoding.temperature)[:, None]
    logits = keep_top_k(logits, of_each(decoding.top_k).astype(jnp.int32))
    logits = keep_top_p(logits, of_each(decoding.top_p).astype(jnp.float32))
    at_place = jax.vmap(lambda key: stream(key, "token", place))(keys)
    return jax.vmap(jax.random.categorical)(at_place, logits).astype(jnp.int32)

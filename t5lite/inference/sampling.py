"""Writing token after token: the likeliest each time, or samples."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from t5lite.core.batches import Batch
from t5lite.core.streams import stream
from t5lite.inference.decoding import (
    Decoded,
    Decoding,
    GenerativeModel,
    decode_step,
    decode_while,
    each_row,
    is_any_of,
    longest,
    norms_and_allowed,
    prefill,
)
from t5lite.inference.filters import keep_top_k, keep_top_p
from t5lite.inference.highest import top_k

# Samples of a row that are written together. They share one cache, of which each attends to all, so
# that many would cost their square.
TOGETHER = 8


def sample(
    model: GenerativeModel,
    params: Any,
    batch: Batch,
    decoding: Decoding,
    *,
    length: int,
    stop_ids: Sequence[int],
    keys: Key[Array, "b"],
) -> Decoded:
    """Returns `num_samples` targets of each row, the likeliest first; meant to be compiled.

    Args:
        batch: see `decoding.prefill`.
        length: tokens at most.
        stop_ids: tokens that end a target.
        keys: one for each row, on which alone its samples depend.
    """
    # As many at a time, of groups of about the same size.
    groups = -(-decoding.num_samples // TOGETHER)
    count, rows = -(-decoding.num_samples // groups), keys.shape[0]
    logits, start = prefill(model, params, batch, hypotheses=count, length=length)

    least, most = each_row(decoding.min_length, rows), longest(decoding, rows, length)

    def of_group(numbers: Int[Array, "hypotheses"]) -> tuple[Array, Array]:
        """Returns the tokens and the log-probabilities of some of the samples."""
        of_each = jax.vmap(
            lambda key: jax.vmap(lambda number: stream(key, "sample", number))(numbers)
        )(keys)

        def write(place: Array, logits: Array, tokens: Array, total: Array, ended: Array) -> Any:
            """Chooses a token of each hypothesis, and returns it with what is known then."""
            early = jnp.broadcast_to(place < least, (rows, count))
            norms, allowed = norms_and_allowed(logits, stop_ids, early)
            token = _chosen(allowed, decoding, place, of_each)
            told = jnp.take_along_axis(allowed, token[..., None], axis=-1)[..., 0] - norms
            token = jnp.where(ended, 0, token)
            total = total + jnp.where(ended, 0.0, told)
            tokens = tokens.at[:, :, place].set(token)
            ended = ended | is_any_of(token, stop_ids) | (place + 1 >= most)
            return place + 1, token, tokens, total, ended

        def go_on(carry: Any) -> Array:
            (_, _, _, _, ended), _ = carry
            return ~jnp.all(ended)

        def step(carry: Any) -> Any:
            (place, token, tokens, total, ended), hypotheses = carry
            logits, hypotheses = decode_step(model, token, hypotheses)
            return write(place, logits, tokens, total, ended), hypotheses

        empty = jnp.zeros((rows, count, length), jnp.int32)
        nothing = (empty, jnp.zeros((rows, count)), jnp.zeros((rows, count), bool))
        first = write(jnp.zeros([], jnp.int32), logits, *nothing)
        _, _, tokens, total, _ = decode_while(go_on, step, (first, start), length)
        return tokens, total

    numbers = jnp.arange(groups * count).reshape(groups, count)
    if groups == 1:
        tokens, total = of_group(numbers[0])
    else:
        made = jax.lax.map(of_group, numbers)
        tokens, total = (jnp.concatenate(list(each), axis=1) for each in made)
        tokens, total = tokens[:, : decoding.num_samples], total[:, : decoding.num_samples]
    order = jnp.argsort(-total, axis=1)
    tokens = jnp.take_along_axis(tokens, order[..., None], axis=1)
    total = jnp.take_along_axis(total, order, axis=1)
    return Decoded(tokens, total, total)


def _chosen(
    logits: Float[Array, "b hypotheses v"],
    decoding: Decoding,
    place: Int[Array, ""],
    keys: Key[Array, "b hypotheses"],
) -> Int[Array, "b hypotheses"]:
    rows, count, vocab = logits.shape
    if decoding.temperature is None:
        flat = logits.reshape(rows * count, 1, vocab)
        return top_k(flat, jnp.zeros((rows * count, 1)), 1)[1].reshape(rows, count)

    def of_each(number: Any) -> Array:
        return jnp.repeat(each_row(number, rows)[:, 0], count)

    flat = logits.reshape(rows * count, vocab) / of_each(decoding.temperature)[:, None]
    flat = keep_top_k(flat, of_each(decoding.top_k).astype(jnp.int32))
    flat = keep_top_p(flat, of_each(decoding.top_p))
    at_place = jax.vmap(lambda key: stream(key, "token", place))(keys.reshape(-1))
    drawn = jax.vmap(jax.random.categorical)(at_place, flat).astype(jnp.int32)
    return drawn.reshape(rows, count)

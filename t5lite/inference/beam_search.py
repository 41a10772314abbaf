"""Beam search: the likeliest targets of those that a few sequences at a time lead to."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from t5lite.inference.decoding import (
    Decoding,
    Writer,
    Written,
    is_any_of,
    of_rows,
    read_on,
    read_prompt,
    repeated,
    without,
)
from t5lite.models.architectures import Batch

# Below every score there is, and finite, so that sums of it are no NaN.
NEVER = -1e9


def length_penalty(tokens: Array, alpha: Any) -> Array:
    """Returns what sums of log-probabilities are divided by: ((5 + tokens) / 6) ** alpha.

    >>> length_penalty(jnp.array([1, 7]), 1.0).tolist()
    [1.0, 2.0]
    """
    return ((5.0 + tokens) / 6.0) ** alpha


def beam_search(
    model: Writer,
    params: Any,
    batch: Batch,
    decoding: Decoding,
    *,
    length: int,
    stop_ids: Sequence[int],
) -> Written:
    """Returns `num_beams` targets of each row, the best first; meant to be compiled.

    Each step looks at the 2 * num_beams best continuations of all beams: those of the first
    num_beams that end are finished, the best that don't go on. A row is done when what is not
    finished cannot become better than the worst of num_beams finished ones.

    Args:
        batch: see `decoding.read_prompt`.
        length: tokens at most; what has not ended by then is finished as it is.
        stop_ids: tokens that end a target.

    Source: google-research/t5x@main:t5x/decoding.py, beam_search.
    Differs from it in that an end among the second num_beams continuations finishes nothing, as in
    `transformers`.
    """
    count = decoding.num_beams
    logits, cache = read_prompt(model, params, batch, length=length)
    rows, vocab = logits.shape
    logits, cache = jnp.repeat(logits, count, axis=0), repeated(cache, count)
    least, alpha, most = (
        jnp.broadcast_to(jnp.asarray(number, jnp.float32), (rows,))[:, None]
        for number in (
            decoding.min_length,
            decoding.length_penalty,
            length if decoding.max_length is None else decoding.max_length,
        )
    )
    most = jnp.minimum(most, length)

    def take(x: Array, index: Array) -> Array:
        return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)

    def go_on(carry: Any) -> Array:
        return (carry[0] < length) & jnp.any(carry[1])

    def step(carry: Any) -> Any:
        place, is_open, logits, live, live_tokens, done, done_sums, done_tokens, cache = carry
        log_probabilities = jax.nn.log_softmax(logits, axis=-1).reshape(rows, count, vocab)
        early = jnp.broadcast_to(place < least, (rows, count))
        allowed = without(log_probabilities, stop_ids, early)
        sums, index = jax.lax.top_k(
            (live[..., None] + allowed).reshape(rows, count * vocab), 2 * count
        )
        beam, token = index // vocab, (index % vocab).astype(jnp.int32)
        tokens = take(live_tokens, beam).at[:, :, place].set(token)
        ends = is_any_of(token, stop_ids) | (place + 1 >= most)

        counted = ends & (jnp.arange(2 * count) < count)[None] & is_open[:, None]
        scores = jnp.where(counted, sums / length_penalty(place + 1, alpha), NEVER)
        done, best = jax.lax.top_k(jnp.concatenate([done, scores], axis=1), count)
        done_sums = take(jnp.concatenate([done_sums, sums], axis=1), best)
        done_tokens = take(jnp.concatenate([done_tokens, tokens], axis=1), best)

        live, kept = jax.lax.top_k(jnp.where(ends, NEVER, sums), count)
        live_tokens = take(tokens, kept)
        came_from = take(beam, kept) + jnp.arange(rows)[:, None] * count
        # Sums only fall, so nothing becomes better than now, and as long as may be.
        hope = live[:, 0] / length_penalty(most[:, 0], alpha[:, 0])
        is_open = is_open & (hope > jnp.min(done, axis=1))
        cache = of_rows(cache, came_from.reshape(-1))
        logits, cache = read_on(model, params, take(token, kept).reshape(-1), cache)
        return (
            *(place + 1, is_open, logits, live, live_tokens),
            *(done, done_sums, done_tokens, cache),
        )

    empty = jnp.zeros((rows, count, length), jnp.int32)
    never = jnp.full((rows, count), NEVER)
    start = (
        *(jnp.zeros([], jnp.int32), jnp.ones(rows, bool), logits),
        *(never.at[:, 0].set(0.0), empty, never, never, empty, cache),
    )
    *_, scores, sums, tokens, _ = jax.lax.while_loop(go_on, step, start)
    return Written(tokens, sums, scores)

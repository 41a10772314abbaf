"""Greedy decoding and sampling."""

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
from t5lite.models.model import GenerativeModel

# Samples of a row that are decoded together. They share one cache and each attends to all of it, so
# the cost grows with their square.
MAX_SAMPLES_PER_CACHE = 8


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
    """Returns `num_samples` targets of each row, the most likely first; meant to be compiled.

    Args:
        batch: see `decoding.prefill`.
        length: maximum number of generated tokens.
        stop_ids: tokens that end a target.
        keys: one per row; the samples of a row depend on its own key only.
    """
    # Groups of about the same size.
    groups = -(-decoding.num_samples // MAX_SAMPLES_PER_CACHE)
    count = -(-decoding.num_samples // groups)
    rows = keys.shape[0]
    logits, start = prefill(model, params, batch, hypotheses=count, length=length)

    least = each_row(decoding.min_length, rows)
    most = longest(decoding, rows, length)

    def sample_group(numbers: Int[Array, "hypotheses"]) -> tuple[Array, Array]:
        """Returns the tokens and the log-probabilities of the samples with these numbers."""
        sample_keys = jax.vmap(
            lambda key: jax.vmap(lambda number: stream(key, "sample", number))(numbers)
        )(keys)

        def choose(
            position: Array, logits: Array, tokens: Array, total: Array, ended: Array
        ) -> Any:
            """Chooses the next token of each hypothesis and returns the updated loop state."""
            early = jnp.broadcast_to(position < least, (rows, count))
            norms, allowed = norms_and_allowed(logits, stop_ids, early)
            token = _next_token(allowed, decoding, position, sample_keys)
            chosen = jnp.take_along_axis(allowed, token[..., None], axis=-1)[..., 0]
            token = jnp.where(ended, 0, token)
            total = total + jnp.where(ended, 0.0, chosen - norms)
            tokens = tokens.at[:, :, position].set(token)
            ended = ended | is_any_of(token, stop_ids) | (position + 1 >= most)
            return position + 1, token, tokens, total, ended

        def unfinished(carry: Any) -> Array:
            (_, _, _, _, ended), _ = carry
            return ~jnp.all(ended)

        def step(carry: Any) -> Any:
            (position, token, tokens, total, ended), hypotheses = carry
            logits, hypotheses = decode_step(model, token, hypotheses)
            return choose(position, logits, tokens, total, ended), hypotheses

        empty = jnp.zeros((rows, count, length), jnp.int32)
        nothing = (empty, jnp.zeros((rows, count)), jnp.zeros((rows, count), bool))
        first = choose(jnp.zeros([], jnp.int32), logits, *nothing)
        _, _, tokens, total, _ = decode_while(unfinished, step, (first, start), length)
        return tokens, total

    numbers = jnp.arange(groups * count).reshape(groups, count)
    if groups == 1:
        tokens, total = sample_group(numbers[0])
    else:
        stacked = jax.lax.map(sample_group, numbers)
        tokens, total = (jnp.concatenate(list(each), axis=1) for each in stacked)
        tokens = tokens[:, : decoding.num_samples]
        total = total[:, : decoding.num_samples]
    order = jnp.argsort(-total, axis=1)
    tokens = jnp.take_along_axis(tokens, order[..., None], axis=1)
    total = jnp.take_along_axis(total, order, axis=1)
    return Decoded(tokens, total, total)


def _next_token(
    logits: Float[Array, "b hypotheses v"],
    decoding: Decoding,
    position: Int[Array, ""],
    keys: Key[Array, "b hypotheses"],
) -> Int[Array, "b hypotheses"]:
    rows, count, vocab = logits.shape
    if decoding.temperature is None:
        flat = logits.reshape(rows * count, 1, vocab)
        return top_k(flat, jnp.zeros((rows * count, 1)), 1)[1].reshape(rows, count)

    def per_hypothesis(number: Any) -> Array:
        return jnp.repeat(each_row(number, rows)[:, 0], count)

    flat = logits.reshape(rows * count, vocab) / per_hypothesis(decoding.temperature)[:, None]
    flat = keep_top_k(flat, per_hypothesis(decoding.top_k).astype(jnp.int32))
    flat = keep_top_p(flat, per_hypothesis(decoding.top_p))
    token_keys = jax.vmap(lambda key: stream(key, "token", position))(keys.reshape(-1))
    drawn = jax.vmap(jax.random.categorical)(token_keys, flat).astype(jnp.int32)
    return drawn.reshape(rows, count)

"""Beam search: the likeliest targets of those that a few sequences at a time lead to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.batches import Batch
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
    reordered,
)
from t5lite.inference.highest import top_k, top_k_of_rows

# Below every score there is, and finite, so that sums of it are no NaN.
NEVER = -1e9


def length_penalty(tokens: Array, alpha: Any) -> Array:
    """Returns what sums of log-probabilities are divided by: ((5 + tokens) / 6) ** alpha.

    >>> length_penalty(jnp.array([1, 7]), 1.0).tolist()
    [1.0, 2.0]
    """
    return ((5.0 + tokens) / 6.0) ** alpha


class Beams(NamedTuple):
    """The k beams of one group in each row. `ranks` are `sums` less what diversity costs."""

    is_open: Bool[Array, "b"]
    ranks: Float[Array, "b k"]
    sums: Float[Array, "b k"]
    tokens: Int[Array, "b k l"]
    done_scores: Float[Array, "b k"]
    done_sums: Float[Array, "b k"]
    done_tokens: Int[Array, "b k l"]


class Limits(NamedTuple):
    """What targets are ended and ranked by: numbers, one for each row."""

    most: Float[Array, "b 1"]
    alpha: Float[Array, "b 1"]


def beam_search(
    model: GenerativeModel,
    params: Any,
    batch: Batch,
    decoding: Decoding,
    *,
    length: int,
    stop_ids: Sequence[int],
) -> Decoded:
    """Returns `num_beams` targets of each row, the best first; meant to be compiled.

    Each step looks at the best continuations of the k beams of a group, so many that k of them
    don't end whatever the others do: those of the first k that end are finished, the best that
    don't go on. A group is done when what is not finished cannot become better than the worst of
    k finished ones.

    Args:
        batch: see `decoding.prefill`.
        length: tokens at most; what has not ended by then is finished as it is.
        stop_ids: tokens that end a target.

    Source: google-research/t5x@main:t5x/decoding.py, beam_search.
    Differs from it in that an end behind the first k continuations finishes nothing, as in
    `transformers`.
    """
    count, groups = decoding.num_beams, decoding.num_beam_groups
    logits, hypotheses = prefill(model, params, batch, hypotheses=count, length=length)
    rows, _, vocab = logits.shape

    least, penalty, alpha = (
        each_row(number, rows)
        for number in (decoding.min_length, decoding.diversity_penalty, decoding.length_penalty)
    )
    limits = Limits(longest(decoding, rows, length), alpha)

    def choose(place: Array, logits: Array, beams: Sequence[Beams]) -> Any:
        """Returns the beams with one more token, these tokens, and what each goes on from."""
        early = jnp.broadcast_to(place < least, (rows, count))
        # Of a whole vocabulary nobody needs log-probabilities.
        norms, logits = norms_and_allowed(logits, stop_ids, early)
        taken = jnp.zeros((rows, vocab))
        after: list[Beams] = []
        tokens: list[Array] = []
        origins: list[Array] = []
        split = (jnp.split(x, groups, axis=1) for x in (logits, norms))
        for group, of_group, norm in zip(beams, *split, strict=True):
            cost = penalty * taken if after else None
            group, token, origin = _advance(group, of_group, norm, cost, place, limits, stop_ids)
            after.append(group)
            tokens.append(token)
            origins.append(origin + len(origins) * (count // groups))
            if len(after) < groups:
                takes = jax.nn.one_hot(token, vocab).sum(axis=1)
                taken = taken + jnp.where(group.is_open[:, None], takes, 0.0)
        chosen = jnp.concatenate(tokens, axis=1), jnp.concatenate(origins, axis=1)
        return place + 1, tuple(after), *chosen

    def go_on(carry: Any) -> Array:
        (_, beams, _, _), _ = carry
        return jnp.any(jnp.stack([group.is_open for group in beams]))

    def step(carry: Any) -> Any:
        (place, beams, token, origins), hypotheses = carry
        logits, hypotheses = decode_step(model, token, reordered(hypotheses, origins))
        return choose(place, logits, beams), hypotheses

    first = (_first_beams(rows, count // groups, length),) * groups
    start = choose(jnp.zeros([], jnp.int32), logits, first)
    _, beams, _, _ = decode_while(go_on, step, (start, hypotheses), length)
    tokens, sums, scores = (
        jnp.concatenate([getattr(group, f"done_{name}") for group in beams], axis=1)
        for name in ("tokens", "sums", "scores")
    )
    scores, order = top_k_of_rows(scores, count)
    return Decoded(_take(tokens, order), _take(sums, order), scores)


def _first_beams(rows: int, count: int, length: int) -> Beams:
    """One beam without tokens; the others are too unlikely ever to be looked at."""
    never = jnp.full((rows, count), NEVER)
    none, empty = never.at[:, 0].set(0.0), jnp.zeros((rows, count, length), jnp.int32)
    return Beams(jnp.ones(rows, bool), none, none, empty, never, never, empty)


def _advance(
    beams: Beams,
    logits: Float[Array, "b k v"],
    norms: Float[Array, "b k"],
    costs: Float[Array, "b v"] | None,
    place: Int[Array, ""],
    limits: Limits,
    stop_ids: Sequence[int],
) -> tuple[Beams, Int[Array, "b k"], Int[Array, "b k"]]:
    """Returns the beams with one more token, these tokens, and which beam each goes on from.

    Args:
        logits: of the next token; less `norms`, its log-probabilities.
        costs: what diversity takes from them, None for nothing.
    """
    rows, count, vocab = logits.shape
    # Of each beam every stop may be among them.
    looked_at = min(max(2, 1 + len(set(stop_ids))) * count, count * vocab)
    dear = logits if costs is None else logits - costs[:, None]
    ranks, index = top_k(dear, beams.ranks - norms, looked_at)
    beam, token = index // vocab, (index % vocab).astype(jnp.int32)
    sums = _take(logits.reshape(rows, count * vocab), index) + _take(beams.sums - norms, beam)
    tokens = _take(beams.tokens, beam).at[:, :, place].set(token)
    ends = is_any_of(token, stop_ids) | (place + 1 >= limits.most)

    counted = ends & (jnp.arange(ends.shape[1]) < count)[None] & beams.is_open[:, None]
    scores = jnp.where(counted, ranks / length_penalty(place + 1, limits.alpha), NEVER)
    done, best = top_k_of_rows(jnp.concatenate([beams.done_scores, scores], axis=1), count)
    done_sums = _take(jnp.concatenate([beams.done_sums, sums], axis=1), best)
    done_tokens = _take(jnp.concatenate([beams.done_tokens, tokens], axis=1), best)

    ranks, kept = top_k_of_rows(jnp.where(ends, NEVER, ranks), count)
    # Sums only fall, so nothing becomes better than now, and as long as may be.
    hope = ranks[:, 0] / length_penalty(limits.most, limits.alpha)[:, 0]
    is_open = beams.is_open & (hope > jnp.min(done, axis=1))
    after = Beams(
        *(is_open, ranks, _take(sums, kept), _take(tokens, kept)),
        *(done, done_sums, done_tokens),
    )
    return after, _take(token, kept), _take(beam, kept)


def _take(x: Array, index: Int[Array, "b n"]) -> Array:
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)

"""Beam search, with groups of beams as in diverse beam search."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.batches import Batch
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
    reordered,
)
from t5lite.inference.highest import top_k, top_k_of_rows
from t5lite.models.model import GenerativeModel

# The score of an empty slot: below every real score, and finite so that sums of it are not NaN.
NEVER = -1e9


def length_penalty(tokens: Array, alpha: Any, normalization: str = "gnmt") -> Array:
    """Returns the divisor of a sum of log-probabilities, by `Decoding.length_normalization`.

    >>> length_penalty(jnp.array([1, 7]), 1.0).tolist()
    [1.0, 2.0]
    >>> length_penalty(jnp.array([1.0, 7.0]), 2.0, "tokens").tolist()
    [1.0, 49.0]
    """
    length = tokens if normalization == "tokens" else (5.0 + tokens) / 6.0
    return jnp.asarray(length, jnp.float32) ** alpha


class Beams(NamedTuple):
    """The k beams of one group in each row. `ranks` are `sums` minus the diversity penalties."""

    is_open: Bool[Array, "b"]
    ranks: Float[Array, "b k"]
    sums: Float[Array, "b k"]
    tokens: Int[Array, "b k l"]
    done_scores: Float[Array, "b k"]
    done_sums: Float[Array, "b k"]
    done_tokens: Int[Array, "b k l"]


class Limits(NamedTuple):
    """The maximum number of tokens and the exponent of the length penalty, per row."""

    max_tokens: Float[Array, "b 1"]
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

    Each step ranks enough continuations of the k beams of a group that at least k of them do not
    end. Those among the first k that end are finished; the best k that do not end continue. A group
    is done by the rule of `Decoding.early_stopping`.

    If a row has fewer than `num_beams` hypotheses, the remaining slots have scores of about `NEVER`
    and no meaning.

    Args:
        batch: see `decoding.prefill`.
        length: maximum number of generated tokens; a target that reaches it is finished.
        stop_ids: tokens that end a target.

    Source: google-research/t5x@main:t5x/decoding.py, beam_search; the other rules of
    `Decoding.early_stopping` are those of
    huggingface/transformers@v5.24.0:src/transformers/generation/utils.py, _beam_search.
    Differs: an end that is ranked after the first k continuations finishes nothing, as in
    `transformers`.
    """
    count = decoding.num_beams
    groups = decoding.num_beam_groups
    logits, hypotheses = prefill(model, params, batch, hypotheses=count, length=length)
    rows, _, vocab = logits.shape

    least, penalty, alpha = (
        each_row(number, rows)
        for number in (decoding.min_length, decoding.diversity_penalty, decoding.length_penalty)
    )
    limits = Limits(longest(decoding, rows, length), alpha)

    def choose(position: Array, logits: Array, beams: Sequence[Beams]) -> Any:
        """Returns the beams with one more token, that token, and the beam each one continues."""
        early = jnp.broadcast_to(position < least, (rows, count))
        # Subtracting the norm from the few chosen logits is cheaper than from a whole vocabulary.
        norms, logits = norms_and_allowed(logits, stop_ids, early)
        taken = jnp.zeros((rows, vocab))
        extended: list[Beams] = []
        tokens: list[Array] = []
        origins: list[Array] = []
        split = (jnp.split(x, groups, axis=1) for x in (logits, norms))
        for group, group_logits, norm in zip(beams, *split, strict=True):
            cost = penalty * taken if extended else None
            group, token, origin = _advance(
                group, group_logits, norm, cost, position, limits, stop_ids, decoding
            )
            extended.append(group)
            tokens.append(token)
            origins.append(origin + len(origins) * (count // groups))
            if len(extended) < groups:
                takes = jax.nn.one_hot(token, vocab).sum(axis=1)
                taken = taken + jnp.where(group.is_open[:, None], takes, 0.0)
        chosen = jnp.concatenate(tokens, axis=1)
        return position + 1, tuple(extended), chosen, jnp.concatenate(origins, axis=1)

    def unfinished(carry: Any) -> Array:
        (_, beams, _, _), _ = carry
        return jnp.any(jnp.stack([group.is_open for group in beams]))

    def step(carry: Any) -> Any:
        (position, beams, token, origins), hypotheses = carry
        logits, hypotheses = decode_step(model, token, reordered(hypotheses, origins))
        return choose(position, logits, beams), hypotheses

    first = (_first_beams(rows, count // groups, length),) * groups
    start = choose(jnp.zeros([], jnp.int32), logits, first)
    _, beams, _, _ = decode_while(unfinished, step, (start, hypotheses), length)
    tokens, sums, scores = (
        jnp.concatenate([getattr(group, f"done_{name}") for group in beams], axis=1)
        for name in ("tokens", "sums", "scores")
    )
    scores, order = top_k_of_rows(scores, count)
    return Decoded(_take(tokens, order), _take(sums, order), scores)


def _first_beams(rows: int, count: int, length: int) -> Beams:
    """Returns one beam without tokens; the other slots are empty."""
    never = jnp.full((rows, count), NEVER)
    start = never.at[:, 0].set(0.0)
    tokens = jnp.zeros((rows, count, length), jnp.int32)
    return Beams(jnp.ones(rows, bool), start, start, tokens, never, never, tokens)


def _advance(
    beams: Beams,
    logits: Float[Array, "b k v"],
    norms: Float[Array, "b k"],
    costs: Float[Array, "b v"] | None,
    position: Int[Array, ""],
    limits: Limits,
    stop_ids: Sequence[int],
    decoding: Decoding,
) -> tuple[Beams, Int[Array, "b k"], Int[Array, "b k"]]:
    """Returns the beams with one more token, that token, and the beam that each one continues.

    Args:
        logits: of the next token; minus `norms` they are log-probabilities.
        costs: diversity penalties to subtract, None for none.
    """
    rows, count, vocab = logits.shape
    # Every stop id of every beam may be among the candidates.
    candidates = min(max(2, 1 + len(set(stop_ids))) * count, count * vocab)
    penalized = logits if costs is None else logits - costs[:, None]
    ranks, index = top_k(penalized, beams.ranks - norms, candidates)
    beam = index // vocab
    token = (index % vocab).astype(jnp.int32)
    sums = _take(logits.reshape(rows, count * vocab), index) + _take(beams.sums - norms, beam)
    tokens = _take(beams.tokens, beam).at[:, :, position].set(token)
    ends = is_any_of(token, stop_ids) | (position + 1 >= limits.max_tokens)

    counted = ends & (jnp.arange(ends.shape[1]) < count)[None] & beams.is_open[:, None]
    normalization = decoding.length_normalization
    divisor = length_penalty(position + 1, limits.alpha, normalization)
    scores = jnp.where(counted, ranks / divisor, NEVER)
    done, best = top_k_of_rows(jnp.concatenate([beams.done_scores, scores], axis=1), count)
    done_sums = _take(jnp.concatenate([beams.done_sums, sums], axis=1), best)
    done_tokens = _take(jnp.concatenate([beams.done_tokens, tokens], axis=1), best)

    ranks, kept = top_k_of_rows(jnp.where(ends, NEVER, ranks), count)
    # With "never": sums only decrease, so no open beam can score above its present sum at the
    # maximum length.
    if decoding.early_stopping == "never":
        divisor = length_penalty(limits.max_tokens, limits.alpha, normalization)
    bound = (ranks[:, :1] / divisor)[:, 0]
    worst = jnp.min(done, axis=1)
    is_open = beams.is_open & (bound > worst)
    if decoding.early_stopping == "full":
        is_open = is_open & (worst <= NEVER)
    extended = Beams(
        is_open=is_open,
        ranks=ranks,
        sums=_take(sums, kept),
        tokens=_take(tokens, kept),
        done_scores=done,
        done_sums=done_sums,
        done_tokens=done_tokens,
    )
    return extended, _take(token, kept), _take(beam, kept)


def _take(x: Array, index: Int[Array, "b n"]) -> Array:
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)

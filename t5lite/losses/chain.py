"""A linear-chain conditional random field: the loss of whole sequences of classes.

A score is that of a path: its logits at the positions that count, and `Transitions` between them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from t5lite.core.batches import Batch, segments_of, targets_of
from t5lite.core.numbers import numeric
from t5lite.core.transitions import Transitions
from t5lite.losses.loss import Apply, LossSums


@numeric
class CRF:
    """Minus the log-probability of the right path of classes of each example, in nats.

    A path has the positions of an example whose targets count, such as the first tokens of words;
    the examples of a packed row have paths of their own. Evaluation counts as correct what the most
    likely path has right.

    Source: Lafferty, McCallum and Pereira, "Conditional Random Fields"; the first and last scores
    are those of Lample et al., "Neural Architectures for Named Entity Recognition".
    """

    # Of `Classes`, the structure that this loss is for.
    structure: ClassVar[str] = "chain"

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns the sums `loss`, `cross_entropy` and `tokens`, by row also `correct`."""
        hidden, _ = apply.hidden(params, batch, key)
        logits = apply.logits(params, hidden).astype(jnp.float32)
        transitions = apply.head(params, "transitions")
        targets, weights = targets_of(batch)
        chain = chain_of(weights > 0, segments_of(batch))
        missing = log_partition(logits, transitions, chain)
        missing = missing - path_score(logits, transitions, chain, targets)
        axis = 1 if by_row else None
        loss = missing if by_row else jnp.sum(missing)
        tokens = jnp.sum(chain.counts, axis, dtype=jnp.float32)
        sums = {"loss": loss, "cross_entropy": loss, "tokens": tokens}
        if by_row:
            path, _ = best_path(logits, transitions, chain)
            is_right = (path == targets) & chain.counts
            sums["correct"] = jnp.sum(is_right, axis, dtype=jnp.float32)
        return sums

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns nothing: the standard metrics suffice."""
        return {}


class Chain(NamedTuple):
    """The positions of the paths of each row.

    Args:
        counts: whether a position is in a path.
        begins, ends: whether it is the first or the last one.
        before: the position before it in the row that counts, for all but the first.
    """

    counts: Bool[Array, "b l"]
    begins: Bool[Array, "b l"]
    ends: Bool[Array, "b l"]
    before: Int[Array, "b l"]


def chain_of(counts: Bool[Array, "b l"], segment_ids: Int[Array, "b l"]) -> Chain:
    """Returns the positions of paths, of which each example has one.

    >>> counts = jnp.array([[1, 0, 1, 1, 1, 0]]) > 0
    >>> chain = chain_of(counts, jnp.array([[1, 1, 1, 2, 2, 0]]))
    >>> (chain.begins * 1)[0].tolist(), (chain.ends * 1)[0].tolist()
    ([1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 1, 0])
    """
    length = counts.shape[1]
    index = jnp.where(counts, jnp.arange(length)[None], -1)
    latest = jax.lax.cummax(index, axis=1)
    before = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    index = jnp.where(counts, jnp.arange(length)[None], length)
    soonest = jax.lax.cummin(index, axis=1, reverse=True)
    after = jnp.pad(soonest[:, 1:], ((0, 0), (0, 1)), constant_values=length)

    def is_other(position: Int[Array, "b l"]) -> Bool[Array, "b l"]:
        there = jnp.take_along_axis(segment_ids, jnp.clip(position, 0, length - 1), axis=1)
        return (position < 0) | (position >= length) | (there != segment_ids)

    return Chain(
        counts=counts,
        begins=counts & is_other(before),
        ends=counts & is_other(after),
        before=jnp.maximum(before, 0),
    )


def path_score(
    logits: Float[Array, "b l v"], scores: Transitions, chain: Chain, path: Int[Array, "b l"]
) -> Float[Array, "b"]:
    """Returns the score of given paths, summed over those of a row."""
    own = jnp.take_along_axis(logits, path[..., None], axis=-1)[..., 0]
    previous = jnp.take_along_axis(path, chain.before, axis=1)
    entering = jnp.where(chain.begins, scores.first[path], scores.pairs[previous, path])
    leaving = jnp.where(chain.ends, scores.last[path], 0.0)
    return jnp.sum(jnp.where(chain.counts, own + entering + leaving, 0.0), axis=1)


def log_partition(
    logits: Float[Array, "b l v"], scores: Transitions, chain: Chain
) -> Float[Array, "b"]:
    """Returns the log of the sum over all paths of e^score, summed over the examples of a row."""

    def step(carry: tuple[Array, Array], x: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        alpha, total = carry
        own, counts, begins, ends = x
        following = jax.nn.logsumexp(alpha[:, :, None] + scores.pairs[None], axis=1)
        entered = own + jnp.where(begins[:, None], scores.first[None], following)
        alpha = jnp.where(counts[:, None], entered, alpha)
        ended = jax.nn.logsumexp(alpha + scores.last[None], axis=-1)
        return (alpha, total + jnp.where(ends, ended, 0.0)), None

    start = (jnp.zeros_like(logits[:, 0]), jnp.zeros_like(logits[:, 0, 0]))
    (_, total), _ = jax.lax.scan(step, start, _by_position(logits, chain))
    return total


def best_path(
    logits: Float[Array, "b l v"], scores: Transitions, chain: Chain
) -> tuple[Int[Array, "b l"], Float[Array, "b"]]:
    """Returns the paths of the highest score, 0 where nothing counts, and that score (Viterbi)."""
    stay = jnp.arange(logits.shape[-1])[None]

    def forward(alpha: Array, x: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        own, counts, begins, _ = x
        entering = alpha[:, :, None] + scores.pairs[None]
        best = jnp.where(begins[:, None], scores.first[None], jnp.max(entering, axis=1))
        source = jnp.where(counts[:, None], jnp.argmax(entering, axis=1), stay)
        alpha = jnp.where(counts[:, None], own + best, alpha)
        return alpha, (alpha, source)

    positions = _by_position(logits, chain)
    _, (alphas, sources) = jax.lax.scan(forward, jnp.zeros_like(logits[:, 0]), positions)
    finals = alphas + scores.last[None, None]

    def backward(number: Array, x: tuple[Array, ...]) -> tuple[Array, Array]:
        source, last, ends = x
        number = jnp.where(ends, last, number)
        return jnp.take_along_axis(source, number[:, None], axis=1)[:, 0], number

    ends = chain.ends.T
    x = (sources, jnp.argmax(finals, axis=-1), ends)
    _, numbers = jax.lax.scan(backward, jnp.zeros_like(sources[0, :, 0]), x, reverse=True)
    score = jnp.sum(jnp.where(ends, jnp.max(finals, axis=-1), 0.0), axis=0)
    return jnp.where(chain.counts, numbers.T, 0), score


def _by_position(logits: Float[Array, "b l v"], chain: Chain) -> tuple[Array, ...]:
    """Returns what the scans read at each position."""
    return jnp.swapaxes(logits, 0, 1), chain.counts.T, chain.begins.T, chain.ends.T

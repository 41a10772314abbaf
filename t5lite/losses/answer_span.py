"""The loss of a span of tokens that answers a question: of its first and of its last token."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from t5lite.core.batches import Batch, segments_of, targets_of
from t5lite.core.examples import SPAN_END, SPAN_START
from t5lite.core.numbers import numeric
from t5lite.losses.loss import Apply, LossSums


@numeric
class SpanCrossEntropy:
    """Cross-entropy in nats of the first and the last token of a span, the mean of both.

    Each is chosen among the tokens of its example whose weight is over 0. An example whose span is
    not known has no loss, and the unit of `tokens` is spans. Evaluation counts a span as correct if
    both its ends are the most likely.

    Source: Devlin et al., BERT, section 4.2.
    Differs: tokens of the question and of padding are no candidates.
    """

    # Of `Classes`, the structure that this loss is for.
    structure: ClassVar[str] = "span"

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns the sums `loss`, `cross_entropy`, `correct` and `tokens`, of known spans."""
        hidden, _ = apply.hidden(params, batch, key)
        log_probs = span_log_probs(apply.logits(params, hidden), batch)
        targets, _ = targets_of(batch)
        is_end = jnp.stack([targets & SPAN_START, targets & SPAN_END], axis=-1) > 0
        of_tokens = -0.5 * jnp.sum(jnp.where(is_end, log_probs, 0.0), axis=-1)
        axis = 1 if by_row else None
        loss = jnp.sum(of_tokens, axis)
        highest = of_examples(jax.ops.segment_max, log_probs, segments_of(batch))
        wrong = jnp.any(is_end & ~(log_probs >= highest), axis=-1)[..., None].astype(jnp.int32)
        is_wrong = of_examples(jax.ops.segment_max, wrong, segments_of(batch))[..., 0] > 0
        is_right = is_end[..., 0] & ~is_wrong
        return {
            "loss": loss,
            "cross_entropy": loss,
            "correct": jnp.sum(is_right, axis, dtype=jnp.float32),
            "tokens": jnp.sum(is_end[..., 0], axis, dtype=jnp.float32),
        }

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns nothing: the standard metrics suffice."""
        return {}


def span_log_probs(logits: Float[Array, "b l 2"], batch: Batch) -> Float[Array, "b l 2"]:
    """Returns the log-probability of each token to be the first, or the last, of a span.

    It is very low for a token that is no candidate.
    """
    _, weights = targets_of(batch)
    segments = segments_of(batch)
    return log_probs_within(logits, (weights > 0) & (segments > 0), segments)


def log_probs_within(
    logits: Float[Array, "b l n"], is_candidate: Bool[Array, "b l"], ids: Int[Array, "b l"]
) -> Float[Array, "b l n"]:
    """Returns the log-probability of each candidate among those with the same number in `ids`.

    It is very low for what is no candidate.
    """
    # Finite, so that its gradient is.
    logits = jnp.where(is_candidate[..., None], logits.astype(jnp.float32), -1e9)
    highest = jax.lax.stop_gradient(of_examples(jax.ops.segment_max, logits, ids))
    shifted = logits - highest
    sums = of_examples(jax.ops.segment_sum, jnp.exp(shifted), ids)
    return shifted - jnp.log(sums)


def of_examples(
    reduce: Any, x: Float[Array, "b l n"] | Int[Array, "b l n"], segment_ids: Int[Array, "b l"]
) -> Float[Array, "b l n"] | Int[Array, "b l n"]:
    """Returns at each token the sum, or the maximum, over the tokens of its example.

    >>> x, segments = jnp.array([[[1], [3], [5]]]), jnp.array([[1, 1, 2]])
    >>> of_examples(jax.ops.segment_sum, x, segments)[0, :, 0].tolist()
    [4, 4, 5]
    """
    count = segment_ids.shape[1] + 1

    def of_row(row: Array, ids: Array) -> Array:
        reduced: Array = reduce(row, ids, count)
        return reduced[ids]

    made: Array = jax.vmap(of_row)(x, segment_ids)
    return made


def best_span(
    log_probs: Float[Array, "b l 2"], is_candidate: Bool[Array, "b l"], *, longest: int
) -> tuple[Int[Array, "b l"], Float[Array, "b"]]:
    """Returns the most likely span of each row of one example, and its log-probability.

    No span has the row's first token, which is that of no answer. Without any candidate but it, the
    log-probability is minus infinity.

    Args:
        longest: tokens of the longest span.

    Returns:
        `SPAN_START` at its first and `SPAN_END` at its last token, added up if that is the same.
    """
    length = log_probs.shape[1]
    at = jnp.arange(length)
    width = at[None, :] - at[:, None]
    fits = (width >= 0) & (width < longest) & (at[:, None] > 0)

    def of_row(row: tuple[Array, Array]) -> tuple[Array, Array]:
        own, candidates = row
        scores = own[:, None, 0] + own[None, :, 1]
        scores = jnp.where(fits & candidates[:, None] & candidates[None], scores, -jnp.inf)
        first, last = jnp.unravel_index(jnp.argmax(scores), scores.shape)
        numbers = SPAN_START * (at == first) + SPAN_END * (at == last)
        return numbers.astype(jnp.int32), jnp.max(scores)

    # One row at a time: the scores of all pairs are large.
    numbers, scores = jax.lax.map(of_row, (log_probs, is_candidate))
    return numbers, scores

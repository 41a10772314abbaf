"""Losses of the scores by which the candidates of a query are ranked.

Each candidate has its score and its relevance, a whole number, at its first token, whose weight is
over 0; `encoder_query_ids` are the numbers of the queries. To add a loss, write a class whose
`structure` is "ranking" around `scored_candidates`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from t5lite.core.batches import Batch, targets_of
from t5lite.core.fields import check_fields
from t5lite.core.numbers import Number, numeric
from t5lite.losses.answer_span import log_probs_within, of_examples
from t5lite.losses.loss import Apply, LossSums


class Candidates(NamedTuple):
    """The candidates of a batch, each at one token.

    Args:
        counts: where there is a candidate.
        queries: the number of the query of each token in its row; 0 is padding.
    """

    scores: Float[Array, "b l"]
    relevance: Float[Array, "b l"]
    counts: Bool[Array, "b l"]
    queries: Int[Array, "b l"]

    def sum_of_query(self, x: Float[Array, "b l"]) -> Float[Array, "b l"]:
        """Returns at each token the sum over the candidates of its query."""
        return _of_queries(jax.ops.segment_sum, jnp.where(self.counts, x, 0.0), self.queries)

    def max_of_query(self, x: Float[Array, "b l"]) -> Float[Array, "b l"]:
        """Returns at each token the maximum over the candidates of its query."""
        return _of_queries(jax.ops.segment_max, jnp.where(self.counts, x, -jnp.inf), self.queries)

    def sums(
        self, of_candidates: Float[Array, "b l"], has_loss: Bool[Array, "b l"], *, by_row: bool
    ) -> LossSums:
        """Returns the sums of a loss whose unit of `tokens` is queries.

        A query is correct if no candidate with its highest score is less relevant than another.

        Args:
            of_candidates: parts of the loss.
            has_loss: whether the query of a token has one.
        """
        before = jnp.pad(self.queries[:, :-1], ((0, 0), (1, 0)))
        is_query = has_loss & (self.queries > 0) & (self.queries != before)
        is_best = self.counts & (self.scores >= self.max_of_query(self.scores))
        is_less = self.relevance < self.max_of_query(self.relevance)
        # Without a best score, as with NaN, nothing is right.
        right = self.sum_of_query((is_best & ~is_less).astype(jnp.float32))
        wrong = self.sum_of_query((is_best & is_less).astype(jnp.float32))
        is_right = (right > 0) & (wrong == 0)
        axis = 1 if by_row else None
        loss = jnp.sum(jnp.where(self.counts & has_loss, of_candidates, 0.0), axis)
        return {
            "loss": loss,
            "cross_entropy": loss,
            "correct": jnp.sum(is_query & is_right, axis, dtype=jnp.float32),
            "tokens": jnp.sum(is_query, axis, dtype=jnp.float32),
        }


def scored_candidates(
    apply: Apply, params: Any, batch: Batch, key: Key[Array, ""] | None
) -> Candidates:
    """Returns the candidates of a batch with the scores of the model."""
    hidden, _ = apply.hidden(params, batch, key)
    scores = apply.logits(params, hidden)[..., 0].astype(jnp.float32)
    relevance, weights = targets_of(batch)
    queries = batch["encoder_query_ids"]
    return Candidates(scores, relevance.astype(jnp.float32), weights > 0, queries)


@numeric
class _RankingLoss:
    """What the losses of this module share."""

    # Of `Classes`, the structure that these losses are for.
    structure: ClassVar[str] = "ranking"

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns nothing: the standard metrics suffice."""
        return {}


@numeric
class ListwiseSoftmax(_RankingLoss):
    """Cross-entropy in nats between the relevance of a query's candidates and their scores.

    Both are distributions over the candidates: relevance divided by its sum, and the softmax of the
    scores. A query without a relevant candidate has no loss; the unit of `tokens` is queries.

    Args:
        epsilon: of PolyLoss, added times (1 - probability) of the relevant candidates; 0 for none.

    Raises:
        UserError: if `epsilon` is under -1.

    Source: Zhuang et al., RankT5, the losses Softmax and Poly1.
    Differs: relevance is divided by its sum, so that each query has the same weight.
    """

    epsilon: Number = 0.0

    def __post_init__(self) -> None:
        check_fields(self, ("epsilon",), "at least -1", lambda x: x >= -1)

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns the sums `loss`, `cross_entropy`, `correct` and `tokens` of queries."""
        every = scored_candidates(apply, params, batch, key)
        scores = every.scores[..., None]
        log_probs = log_probs_within(scores, every.counts, every.queries)[..., 0]
        total = every.sum_of_query(every.relevance)
        share = every.relevance / jnp.maximum(total, 1.0)
        loss = share * (-log_probs + self.epsilon * (1.0 - jnp.exp(log_probs)))
        return every.sums(loss, total > 0, by_row=by_row)


@numeric
class PairwiseLogistic(_RankingLoss):
    """log(1 + e^(b - a)) of the scores a, b of two candidates of a query, a's the more relevant.

    It is the mean over such pairs of a query, in nats. A query whose candidates are equally
    relevant has no loss; the unit of `tokens` is queries.

    Source: Burges et al., Learning to Rank using Gradient Descent; Zhuang et al., RankT5, the
    loss Pair.
    Differs: each query has the same weight, however many pairs it has.
    """

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns the sums `loss`, `cross_entropy`, `correct` and `tokens` of queries."""
        every = scored_candidates(apply, params, batch, key)
        # The pairs of a row are many: the backward pass computes them again.
        losses, pairs = jax.checkpoint(_losses_of_pairs)(every)
        total = every.sum_of_query(pairs)
        return every.sums(losses / jnp.maximum(total, 1.0), total > 0, by_row=by_row)


@numeric
class PointwiseLogistic(_RankingLoss):
    """Binary cross-entropy in nats of whether each candidate is relevant, the score its logit.

    It needs no other candidates of the query. The unit of `tokens` is candidates, and a candidate
    is correct if its score is over 0 exactly if it is relevant.

    Source: Nogueira and Cho, Passage Re-ranking with BERT.
    """

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns the sums `loss`, `cross_entropy`, `correct` and `tokens` of candidates."""
        scores, relevance, counts, _ = scored_candidates(apply, params, batch, key)
        is_relevant = relevance > 0
        losses = jnp.where(counts, jax.nn.softplus(jnp.where(is_relevant, -scores, scores)), 0.0)
        axis = 1 if by_row else None
        loss = jnp.sum(losses, axis)
        return {
            "loss": loss,
            "cross_entropy": loss,
            "correct": jnp.sum(counts & ((scores > 0) == is_relevant), axis, dtype=jnp.float32),
            "tokens": jnp.sum(counts, axis, dtype=jnp.float32),
        }


def _losses_of_pairs(every: Candidates) -> tuple[Float[Array, "b l"], Float[Array, "b l"]]:
    """Returns, of each candidate, the losses and the number of the pairs in which it is better."""
    scores, relevance, counts, queries = every
    is_pair = (
        (counts[:, :, None] & counts[:, None, :])
        & (queries[:, :, None] == queries[:, None, :])
        & (relevance[:, :, None] > relevance[:, None, :])
    )
    losses = jax.nn.softplus(scores[:, None, :] - scores[:, :, None])
    return jnp.sum(jnp.where(is_pair, losses, 0.0), -1), jnp.sum(is_pair, -1, dtype=jnp.float32)


def _of_queries(
    reduce: Any, x: Float[Array, "b l"], queries: Int[Array, "b l"]
) -> Float[Array, "b l"]:
    reduced: Float[Array, "b l"] = of_examples(reduce, x[..., None], queries)[..., 0]
    return reduced

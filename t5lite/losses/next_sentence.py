"""BERT's pre-training loss: that of masked tokens, and of whether a second sentence is the next."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from t5lite.core.batches import Batch, targets_of
from t5lite.core.fields import check_fields
from t5lite.core.numbers import Number, numeric
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import Apply, LossSums


@numeric
class NextSentence:
    """Cross-entropy of masked tokens, and of whether the second part of each example is the next.

    Args:
        weight: of an example's second loss for each of its masked tokens, so that with examples of
            equal length the means of both losses are added up, as BERT does with a weight of 1.
        cross_entropy: of the masked tokens, with its label smoothing and chunks.

    Raises:
        UserError: if the weight is negative.

    Source: Devlin et al., BERT, appendix A.2.
    """

    # See `check_structure`.
    structure: ClassVar[str] = "pairs"

    weight: Number = 1.0
    cross_entropy: CrossEntropy = CrossEntropy()

    def __post_init__(self) -> None:
        check_fields(self, ("weight",), "at least 0", lambda x: x >= 0)

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns the sums of the cross-entropy, and `pair_loss`, `right_pairs` and `pairs`."""
        hidden, statistics = apply.hidden(params, batch, key)
        _, weights = targets_of(batch)
        sums = self.cross_entropy.sums_of_hidden(apply, params, batch, hidden, by_row=by_row)
        labels = batch["encoder_pair_labels"]
        counts = (labels > 0).astype(jnp.float32)
        log_probs = jax.nn.log_softmax(
            apply.head(params, "pair_logits", hidden).astype(jnp.float32)
        )
        # Labels are 1 and 2, as of `objectives.sentence_pairs`.
        is_other = labels > 1
        pair_loss = -jnp.where(is_other, log_probs[..., 1], log_probs[..., 0]) * counts
        is_right = (log_probs[..., 1] > log_probs[..., 0]) == is_other
        masked = _of_examples(weights, batch["encoder_segment_ids"])
        axis = 1 if by_row else None
        sums = {
            **sums,
            "loss": sums["loss"] + self.weight * jnp.sum(pair_loss * masked, axis),
            "pair_loss": jnp.sum(pair_loss, axis),
            "right_pairs": jnp.sum(is_right * counts, axis),
            "pairs": jnp.sum(counts, axis),
        }
        return self.cross_entropy.with_experts(sums, statistics, weights, by_row=by_row)

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the means of the cross-entropy, and those of pairs."""
        pairs = max(sums["pairs"], 1.0)
        return {
            "next_sentence_nats_per_pair": sums["pair_loss"] / pairs,
            "next_sentence_accuracy_fraction": sums["right_pairs"] / pairs,
            **self.cross_entropy.means(sums),
        }


def _of_examples(weights: Int[Array, "b l"], segment_ids: Int[Array, "b l"]) -> Float[Array, "b l"]:
    """Returns at each token the sum of the weights of its example."""
    count = segment_ids.shape[1] + 1

    def of_row(row: Array, ids: Array) -> Array:
        return jax.ops.segment_sum(row.astype(jnp.float32), ids, count)[ids]

    return jax.vmap(of_row)(weights, segment_ids)

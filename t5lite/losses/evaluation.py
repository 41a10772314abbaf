"""Sums of each row for evaluation, whatever the loss that is trained on."""

from typing import Any

from jaxtyping import Array, Float

from t5lite.core.batches import Batch
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import Apply, Loss, check_sums

# Sums from which perplexity and accuracies are computed.
SCORED_SUMS = ("cross_entropy", "correct", "tokens")


def row_sums(loss: Loss, apply: Apply, params: Any, batch: Batch) -> dict[str, Float[Array, "b"]]:
    """Returns the sums of a loss for each row, with those of `SCORED_SUMS` that it does not have.

    The latter are those of `CrossEntropy`.
    """
    sums = loss(apply, params, batch, by_row=True)
    check_sums(loss, sums, batch, by_row=True)
    missing = [name for name in SCORED_SUMS if name not in sums]
    if not missing:
        return sums
    standard = CrossEntropy()(apply, params, batch, by_row=True)
    return {**sums, **{name: standard[name] for name in missing}}

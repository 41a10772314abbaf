"""Cross-entropy with label smoothing, T5's z-loss, and the losses of experts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from t5lite.core.batches import Batch, targets_of
from t5lite.core.fields import check_fields
from t5lite.core.numbers import Number, numeric, static
from t5lite.losses.chunks import sum_over_chunks
from t5lite.losses.loss import Apply, LayerStatistics, LossSums

# Statistics of experts per target token, and the names under which they are reported.
EXPERT_METRICS = {
    "load_balance": "load_balance_loss",
    "router_z": "router_z_loss",
    "dropped": "dropped_tokens_fraction",
}


@numeric
class CrossEntropy:
    """Softmax cross-entropy in nats with label smoothing and T5's z-loss.

    Args:
        z_loss: weight of log(Z)^2 of each token, where Z is the normaliser of the softmax; it
            keeps log(Z) near 0.
        label_smoothing: probability given to all other tokens together, in [0, 1). The constant
            entropy of the smoothed target is subtracted: a perfect prediction has loss 0.
        load_balance, router_z: weights of the statistics of experts of these names, in each layer
            of a model that has experts.
        chunks: parts of a row whose logits are computed in turn, and again in the backward pass,
            so that the logits of the whole batch are never in memory. It changes no result.

    Source: google-research/t5x@main:t5x/losses.py, compute_weighted_cross_entropy.
    """

    z_loss: Number = 1e-4
    label_smoothing: Number = 0.0
    load_balance: Number = 0.01
    router_z: Number = 1e-3
    chunks: int = static(default=1)

    def __post_init__(self) -> None:
        check_fields(self, ("z_loss", "load_balance", "router_z"), "at least 0", lambda x: x >= 0)
        check_fields(self, ("chunks",), "at least 1", lambda n: n >= 1)
        check_fields(self, ("label_smoothing",), "in [0, 1)", lambda s: 0 <= s < 1)

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns `sums` of the model's logits; with experts also their statistics.

        Statistics are summed over rows, times the target tokens of each, and over layers. The sum
        `loss` includes them with their weights.
        """
        hidden, statistics = apply.hidden(params, batch, key)
        sums = self.sums_of_hidden(apply, params, batch, hidden, by_row=by_row)
        return self.with_experts(sums, statistics, targets_of(batch)[1], by_row=by_row)

    def sums_of_hidden(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        hidden: Float[Array, "b l e"],
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns `sums` of the logits of `hidden`, a chunk of them in memory at a time."""
        targets, weights = targets_of(batch)

        def sums_of(x: Float[Array, "b l e"], targets: Int[Array, "b l"], weights: Any) -> LossSums:
            return self.sums(apply.logits(params, x), targets, weights, by_row=by_row)

        return sum_over_chunks(sums_of, self.chunks, hidden, targets, weights)

    def with_experts(
        self,
        sums: LossSums,
        statistics: LayerStatistics,
        weights: Int[Array, "b l"] | Float[Array, "b l"],
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns sums with those of experts, if there are any, also in `loss`."""
        experts = _expert_sums(statistics, weights, by_row=by_row)
        if not experts:
            return sums
        added = self.load_balance * experts["load_balance"]
        added = added + self.router_z * experts["router_z"]
        return {**sums, **experts, "loss": sums["loss"] + added}

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the statistics of experts per target token."""
        tokens = max(sums["tokens"], 1.0)
        return {name: sums[key] / tokens for key, name in EXPERT_METRICS.items() if key in sums}

    def sums(
        self,
        logits: Float[Array, "b l v"],
        targets: Int[Array, "b l"],
        weights: Int[Array, "b l"] | Float[Array, "b l"],
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns weighted sums over the tokens of a batch, or of each of its rows.

        Returns:
            loss: the smoothed cross-entropy plus `z_loss`, in nats.
            cross_entropy: minus the log-probability of the targets, in nats.
            z_loss: in nats.
            correct: number of targets with the highest logit.
            tokens: sum of the weights.
        """
        logits = logits.astype(jnp.float32)
        weights = weights.astype(jnp.float32)
        log_normaliser = jax.nn.logsumexp(logits, axis=-1)
        # NOTE: comparing with iota instead of gathering: XLA fuses it into the reduction without
        # storing it, and it needs no communication if the vocabulary is sharded.
        index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
        is_target = index == targets[..., None]
        target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        cross_entropy = log_normaliser - target_logit

        vocab_size = logits.shape[-1]
        confidence = 1.0 - self.label_smoothing
        other = self.label_smoothing / (vocab_size - 1)
        entropy = -_xlogx(confidence) - (vocab_size - 1) * _xlogx(other)
        smoothed = (
            log_normaliser
            - (confidence - other) * target_logit
            - other * jnp.sum(logits, axis=-1)
            - entropy
        )
        z_loss = self.z_loss * jnp.square(log_normaliser)
        # NOTE: among equal logits the first counts, as in argmax, which is slow on CPUs.
        wanted = target_logit[..., None]
        not_before = (logits < wanted) | ((logits == wanted) & (index >= targets[..., None]))
        correct = jnp.all(not_before, axis=-1)
        axis = 1 if by_row else None
        return {
            "loss": jnp.sum((smoothed + z_loss) * weights, axis),
            "cross_entropy": jnp.sum(cross_entropy * weights, axis),
            "z_loss": jnp.sum(z_loss * weights, axis),
            "correct": jnp.sum(correct * weights, axis),
            "tokens": jnp.sum(weights, axis),
        }


def _xlogx(x: Number) -> Number:
    return x * jnp.log(jnp.maximum(x, np.finfo(np.float32).tiny))


def _expert_sums(
    statistics: LayerStatistics, weights: Float[Array, "b l"] | Int[Array, "b l"], *, by_row: bool
) -> LossSums:
    """Returns sums over layers and rows, each row times its target tokens; {} without experts.

    Of `dropped` it is the mean over layers.
    """
    tokens = jnp.sum(weights, axis=1, dtype=jnp.float32)
    sums = {
        name: jnp.sum(values * tokens[None], 0 if by_row else None)
        for name, values in statistics.items()
    }
    if "dropped" in sums:
        sums["dropped"] = sums["dropped"] / statistics["dropped"].shape[0]
    return sums

"""Token losses as sums over a batch; whoever reports one divides by the sum of weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t5lite.core.numbers import Number, check_number, numeric, static


@numeric
class CrossEntropy:
    """Softmax cross-entropy in nats with label smoothing and T5's z-loss.

    Args:
        z_loss: times log(Z)^2 is added for each token; it keeps log(Z), the logarithm of the
            softmax's normaliser, near 0.
        label_smoothing: probability given to all other tokens together, in [0, 1). The constant
            entropy of the smoothed target is subtracted: a perfect prediction costs 0.
        load_balance, router_z: of a model with experts, times what `experts.route` tells under
            these names, for each of its layers.
        chunks: parts of a row whose logits are made one after another, and again in the backward
            pass, so that those of the whole batch are never in memory. It changes no result.

    Source: google-research/t5x@main:t5x/losses.py, compute_weighted_cross_entropy.
    """

    z_loss: Number = 1e-4
    label_smoothing: Number = 0.0
    load_balance: Number = 0.01
    router_z: Number = 1e-3
    chunks: int = static(default=1)

    def __post_init__(self) -> None:
        for name in ("z_loss", "load_balance", "router_z"):
            value = getattr(self, name)
            check_number(f"CrossEntropy.{name}", value, "at least 0", lambda x: x >= 0)
        check_number("CrossEntropy.chunks", self.chunks, "at least 1", lambda n: n >= 1)
        check_number(
            "CrossEntropy.label_smoothing", self.label_smoothing, "in [0, 1)", lambda s: 0 <= s < 1
        )

    def sums(
        self,
        logits: Float[Array, "b l v"],
        targets: Int[Array, "b l"],
        weights: Int[Array, "b l"] | Float[Array, "b l"],
        *,
        by_row: bool = False,
    ) -> dict[str, Float[Array, "..."]]:
        """Returns sums over the tokens of a batch, or of each of its rows, times their weights.

        Returns:
            loss: what is trained on, `cross_entropy` smoothed, plus `z_loss`, in nats.
            cross_entropy: minus the log-probability of the targets, in nats.
            z_loss: in nats.
            correct: targets that have the highest logit.
            tokens: the weights alone.
        """
        logits, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
        log_normaliser = jax.nn.logsumexp(logits, axis=-1)
        # NOTE: a comparison with iota rather than a gather: XLA fuses it into the reduction
        # without storing it, and it stays local where the vocabulary is sharded.
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
        # NOTE: the first of equals, as argmax has it, which XLA makes slow programs of for CPUs.
        wanted = target_logit[..., None]
        is_behind = (logits < wanted) | ((logits == wanted) & (index >= targets[..., None]))
        correct = jnp.all(is_behind, axis=-1)
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


# What a model with experts is told by, and how it is reported.
EXPERT_METRICS = {
    "load_balance": "load_balance_loss",
    "router_z": "router_z_loss",
    "dropped": "dropped_tokens_fraction",
}


def means(sums: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns what several steps' sums amount to per target token, names with their units."""
    total = {name: math.fsum(float(s[name]) for s in sums) for name in sums[0]}
    tokens = max(total["tokens"], 1.0)
    experts = {
        named: total[name] / tokens for name, named in EXPERT_METRICS.items() if name in total
    }
    return {
        **experts,
        "loss_nats_per_token": total["loss"] / tokens,
        "cross_entropy_nats_per_token": total["cross_entropy"] / tokens,
        "z_loss_nats_per_token": total["z_loss"] / tokens,
        "accuracy_fraction": total["correct"] / tokens,
        "target_tokens": total["tokens"],
    }

"""Which steps are bad: decided inside the compiled step, so that they leave the state as it was.

How a run returns to an earlier checkpoint after many of them is in `returns`.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from t5lite.core.fields import check_fields
from t5lite.core.numbers import Number, numeric

_T = TypeVar("_T")


@numeric
class BadSteps:
    """A bad step leaves parameters and optimizer state as they were, and its sums do not count.

    A step is bad if its loss, gradient or update is not finite, or if its gradient norm exceeds a
    bound: the mean of the logarithms of recent norms, plus the larger of `max_norm_deviations` of
    their standard deviations and of the logarithm of `max_norm_ratio`.

    Args:
        recent_steps: number of good steps over which means of recent norms and losses extend; there
            is no bound before so many.
        max_norm_ratio: norms up to this multiple of the geometric mean of recent ones are good.
        max_norm_deviations: norms up to this many standard deviations of recent logarithms above
            their mean are good too.
        max_in_a_row: the run returns to its last good checkpoint after so many bad steps in a row.
        max_loss_rise: nats per token; it also returns if the mean of recent losses exceeds the
            lowest such mean by more.
        max_returns: how often it returns to the same checkpoint, each time skipping the batches
            since then, before it stops; 0 stops at once.
    """

    recent_steps: Number = 100
    max_norm_ratio: Number = 20.0
    max_norm_deviations: Number = 8.0
    max_in_a_row: Number = 10
    max_loss_rise: Number = 2.0
    max_returns: Number = 2

    def __post_init__(self) -> None:
        counts = ("recent_steps", "max_in_a_row")
        check_fields(self, counts, "a whole number from 1", lambda n: n >= 1 and n % 1 == 0)
        rule = "a whole number from 0"
        check_fields(self, ("max_returns",), rule, lambda n: n >= 0 and n % 1 == 0)
        check_fields(self, ("max_norm_ratio",), "at least 1", lambda x: x >= 1)
        check_fields(self, ("max_norm_deviations",), "at least 0", lambda x: x >= 0)
        check_fields(self, ("max_loss_rise",), "over 0", lambda x: x > 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RecentSteps:
    """What a run remembers of its recent steps; scalars, or whatever a `TrainState` holds.

    Args:
        good_steps: number of good steps so far, int32.
        log_norm, log_norm_variance: mean and variance of the logarithms of recent gradient norms.
        loss, lowest_loss: the mean of recent losses in nats per token, and its lowest value.
        bad_in_a_row: number of bad steps since the last good one, int32.
    """

    good_steps: Any
    log_norm: Any
    log_norm_variance: Any
    loss: Any
    lowest_loss: Any
    bad_in_a_row: Any


def no_recent_steps() -> RecentSteps:
    """Returns what a run remembers before its first step."""
    return RecentSteps(
        good_steps=jnp.zeros([], jnp.int32),
        log_norm=jnp.zeros([]),
        log_norm_variance=jnp.zeros([]),
        loss=jnp.zeros([]),
        lowest_loss=jnp.full([], jnp.inf),
        bad_in_a_row=jnp.zeros([], jnp.int32),
    )


def norm_bound(rules: BadSteps, recent: RecentSteps) -> Float[Array, ""]:
    """Returns the largest good gradient norm; infinity before `recent_steps` good steps.

    >>> import math
    >>> seen = dataclasses.replace(
    ...     no_recent_steps(), good_steps=100, log_norm=math.log(2.0), log_norm_variance=0.01)
    >>> round(float(norm_bound(BadSteps(), seen)), 4)
    40.0
    >>> float(norm_bound(BadSteps(), no_recent_steps()))
    inf
    """
    deviations = rules.max_norm_deviations * jnp.sqrt(recent.log_norm_variance)
    bound = jnp.exp(recent.log_norm + jnp.maximum(jnp.log(rules.max_norm_ratio), deviations))
    return jnp.where(recent.good_steps < rules.recent_steps, jnp.inf, bound)


def after_step(
    rules: BadSteps,
    recent: RecentSteps,
    *,
    is_good: Bool[Array, ""],
    loss: Float[Array, ""],
    norm: Float[Array, ""],
) -> RecentSteps:
    """Returns what a run remembers after one more step.

    Args:
        loss: nats per token.
        norm: of the gradient before clipping.
    """
    good_steps = recent.good_steps + 1
    # The mean of all steps so far, and later an exponential mean over `recent_steps`.
    rate = 1.0 / jnp.minimum(good_steps.astype(jnp.float32), rules.recent_steps)
    # A gradient of 0, as of a batch without targets, has no logarithm and is not remembered.
    log_norm = jnp.where(norm > 0, jnp.log(norm), recent.log_norm)
    mean = recent.log_norm + rate * (log_norm - recent.log_norm)
    squared = (log_norm - recent.log_norm) * (log_norm - mean)
    mean_loss = recent.loss + rate * (loss - recent.loss)
    lowest = jnp.minimum(recent.lowest_loss, mean_loss)
    seen = RecentSteps(
        good_steps=good_steps,
        log_norm=mean,
        log_norm_variance=recent.log_norm_variance + rate * (squared - recent.log_norm_variance),
        loss=mean_loss,
        lowest_loss=jnp.where(good_steps < rules.recent_steps, recent.lowest_loss, lowest),
        bad_in_a_row=jnp.zeros([], jnp.int32),
    )
    missed = dataclasses.replace(recent, bad_in_a_row=recent.bad_in_a_row + 1)
    return where_good(is_good, seen, missed)


def judge(
    rules: BadSteps,
    recent: RecentSteps,
    *,
    loss: Float[Array, ""],
    norm: Float[Array, ""],
    updates: Any,
) -> tuple[Bool[Array, ""], RecentSteps, dict[str, Float[Array, ""]]]:
    """Returns whether a step is good, what the run remembers after it, and what decided it.

    Args:
        loss: nats per token.
        norm: of the gradient before clipping.
        updates: of the parameters.
    """
    bound = norm_bound(rules, recent)
    update_norm = optax.tree.norm(updates)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(update_norm)
    is_good = finite & (norm <= bound)
    after = after_step(rules, recent, is_good=is_good, loss=loss, norm=norm)
    rise = after.loss - after.lowest_loss
    verdict = {
        "norm_bound": bound,
        "update_norm": update_norm,
        "bad_steps": 1.0 - is_good.astype(jnp.float32),
        "bad_in_a_row": after.bad_in_a_row.astype(jnp.float32),
        "step_loss": loss,
        # There is no lowest mean at first.
        "loss_rise": jnp.where(jnp.isfinite(after.lowest_loss), rise, 0.0),
    }
    return is_good, after, verdict


def where_good(is_good: Bool[Array, ""], new: _T, old: _T) -> _T:
    """Returns the tree `new` if the step is good, and `old` if not."""
    chosen: _T = jax.tree.map(lambda a, b: jnp.where(is_good, a, b), new, old)
    return chosen

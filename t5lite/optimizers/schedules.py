"""Learning rates as functions of the step. All numbers of these classes are inputs of the program.

Schedules of several stages are in `staged_schedules`, those of optax and functions of one's own in
`function_schedule`.
"""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5lite.core.fields import check_fields
from t5lite.core.numbers import Number, numeric

StepNumber = int | Int[Array, ""]

# From the fraction of the decay that is over to the fraction of the rate that is left.
DECAYS = {
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + jnp.cos(jnp.pi * x)),
    "square_root": lambda x: 1.0 - jnp.sqrt(x),
}


@runtime_checkable
class Schedule(Protocol):
    """The learning rate at a step, counted from 0."""

    def __call__(self, step: StepNumber) -> Float[Array, ""]: ...


@numeric
class ConstantSchedule:
    """One rate, after a linear warm-up from 0 over `warmup_steps`.

    Args:
        learning_rate: the rate after the warm-up.
        warmup_steps: steps of the warm-up; 0 for none.

    >>> schedule = ConstantSchedule(learning_rate=0.1, warmup_steps=2)
    >>> [round(float(schedule(s)), 3) for s in range(4)]
    [0.05, 0.1, 0.1, 0.1]
    """

    gin_name = "Constant"

    learning_rate: Number
    warmup_steps: Number = 0

    def __post_init__(self) -> None:
        check_fields(self, ("learning_rate", "warmup_steps"), "at least 0", lambda x: x >= 0)

    def __call__(self, step: StepNumber) -> Float[Array, ""]:
        return self.learning_rate * warmup_fraction(step, self.warmup_steps)


@numeric
class InverseSquareRootSchedule:
    """T5's pre-training schedule: learning_rate / sqrt(max(step, warmup_steps)).

    The rate is constant over the first `warmup_steps`, not rising: with 1.0 and 10,000 it is 0.01.

    Args:
        learning_rate: the factor of 1 / sqrt(step).
        warmup_steps: steps at the rate of step `warmup_steps`; at least 1.

    >>> schedule = InverseSquareRootSchedule(learning_rate=1.0, warmup_steps=10_000)
    >>> [round(float(schedule(s)), 4) for s in (0, 10_000, 40_000)]
    [0.01, 0.01, 0.005]

    Source: google-research/t5x@main:t5x/utils.py, create_learning_rate_scheduler with
    `constant * rsqrt_decay`.
    """

    gin_name = "InverseSquareRoot"

    learning_rate: Number = 1.0
    warmup_steps: Number = 10_000

    def __post_init__(self) -> None:
        check_fields(self, ("learning_rate",), "at least 0", lambda x: x >= 0)
        check_fields(self, ("warmup_steps",), "at least 1", lambda n: n >= 1)

    def __call__(self, step: StepNumber) -> Float[Array, ""]:
        steps = jnp.maximum(jnp.asarray(step, jnp.float32), self.warmup_steps)
        return self.learning_rate / jnp.sqrt(steps)


@numeric
class CosineSchedule:
    """Half a cosine from `learning_rate` to `final_rate` at `decay_steps`, after a warm-up.

    Args:
        learning_rate: the rate after the warm-up.
        decay_steps: the step, counted from the start of the run, at which the decay ends.
        final_rate: the rate from there on.
        warmup_steps: steps of a linear warm-up from 0; 0 for none.

    >>> schedule = CosineSchedule(learning_rate=1.0, final_rate=0.1, warmup_steps=2, decay_steps=12)
    >>> [round(float(schedule(s)), 3) for s in (0, 1, 2, 7, 12, 20)]
    [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]
    """

    gin_name = "Cosine"

    learning_rate: Number
    decay_steps: Number
    final_rate: Number = 0.0
    warmup_steps: Number = 0

    def __post_init__(self) -> None:
        _check_decay(self)

    def __call__(self, step: StepNumber) -> Float[Array, ""]:
        share = DECAYS["cosine"](_decayed_fraction(step, self))
        rate = self.final_rate + (self.learning_rate - self.final_rate) * share
        return rate * warmup_fraction(step, self.warmup_steps)


@numeric
class LinearSchedule:
    """A straight line from `learning_rate` to `final_rate` at `decay_steps`, after a warm-up.

    Args:
        learning_rate: the rate after the warm-up.
        decay_steps: the step, counted from the start of the run, at which the decay ends.
        final_rate: the rate from there on.
        warmup_steps: steps of a linear warm-up from 0; 0 for none.

    >>> schedule = LinearSchedule(learning_rate=1.0, warmup_steps=2, decay_steps=12)
    >>> [round(float(schedule(s)), 3) for s in (0, 1, 2, 7, 12, 20)]
    [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """

    gin_name = "Linear"

    learning_rate: Number
    decay_steps: Number
    final_rate: Number = 0.0
    warmup_steps: Number = 0

    def __post_init__(self) -> None:
        _check_decay(self)

    def __call__(self, step: StepNumber) -> Float[Array, ""]:
        share = DECAYS["linear"](_decayed_fraction(step, self))
        rate = self.final_rate + (self.learning_rate - self.final_rate) * share
        return rate * warmup_fraction(step, self.warmup_steps)


def warmup_fraction(step: StepNumber, warmup_steps: Number) -> Float[Array, ""]:
    """Rises linearly to 1 at step `warmup_steps` - 1, so that the first step has a rate over 0."""
    return jnp.minimum(1.0, (jnp.asarray(step, jnp.float32) + 1.0) / jnp.maximum(warmup_steps, 1))


def _decayed_fraction(
    step: StepNumber, schedule: CosineSchedule | LinearSchedule
) -> Float[Array, ""]:
    past = jnp.asarray(step, jnp.float32) - schedule.warmup_steps
    # A trial run that is shorter than its warm-up has no decay; that is no mistake.
    length = jnp.maximum(schedule.decay_steps - schedule.warmup_steps, 1)
    return jnp.clip(past / length, 0.0, 1.0)


def _check_decay(schedule: CosineSchedule | LinearSchedule) -> None:
    names = ("learning_rate", "final_rate", "warmup_steps")
    check_fields(schedule, names, "at least 0", lambda x: x >= 0)
    check_fields(schedule, ("decay_steps",), "at least 1", lambda n: n >= 1)

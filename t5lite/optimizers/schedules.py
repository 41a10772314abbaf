"""Learning rates as functions of the step; all of their numbers are inputs of the program."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5lite.core.numbers import Number, check_number, numeric

Step = int | Int[Array, ""]


@runtime_checkable
class Schedule(Protocol):
    """The learning rate at a step, counted from 0."""

    def __call__(self, step: Step) -> Float[Array, ""]: ...


@numeric
class Constant:
    """One rate, after a linear warm-up from 0 over `warmup_steps`.

    >>> [round(float(Constant(learning_rate=0.1, warmup_steps=2)(s)), 3) for s in range(4)]
    [0.05, 0.1, 0.1, 0.1]
    """

    learning_rate: Number
    warmup_steps: Number = 0

    def __post_init__(self) -> None:
        _check("Constant", learning_rate=self.learning_rate, warmup_steps=self.warmup_steps)

    def __call__(self, step: Step) -> Float[Array, ""]:
        return self.learning_rate * _warmup(step, self.warmup_steps)


@numeric
class InverseSquareRoot:
    """T5's pre-training schedule: learning_rate / sqrt(max(step, warmup_steps)).

    The rate is flat, not rising, over the first `warmup_steps`: with 1.0 and 10,000 it is 0.01.

    >>> schedule = InverseSquareRoot(learning_rate=1.0, warmup_steps=10_000)
    >>> [round(float(schedule(s)), 4) for s in (0, 10_000, 40_000)]
    [0.01, 0.01, 0.005]

    Source: google-research/t5x@main:t5x/utils.py, create_learning_rate_scheduler with
    `constant * rsqrt_decay`.
    """

    learning_rate: Number = 1.0
    warmup_steps: Number = 10_000

    def __post_init__(self) -> None:
        _check("InverseSquareRoot", learning_rate=self.learning_rate)
        check_number(
            "InverseSquareRoot.warmup_steps", self.warmup_steps, "at least 1", lambda n: n >= 1
        )

    def __call__(self, step: Step) -> Float[Array, ""]:
        steps = jnp.maximum(jnp.asarray(step, jnp.float32), self.warmup_steps)
        return self.learning_rate / jnp.sqrt(steps)


@numeric
class Cosine:
    """Half a cosine from `learning_rate` to `final_rate` at `decay_steps`, after a warm-up.

    >>> schedule = Cosine(learning_rate=1.0, final_rate=0.1, warmup_steps=2, decay_steps=12)
    >>> [round(float(schedule(s)), 3) for s in (0, 1, 2, 7, 12, 20)]
    [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]
    """

    learning_rate: Number
    decay_steps: Number
    final_rate: Number = 0.0
    warmup_steps: Number = 0

    def __post_init__(self) -> None:
        _check_decay("Cosine", self)

    def __call__(self, step: Step) -> Float[Array, ""]:
        share = 0.5 * (1.0 + jnp.cos(jnp.pi * _decayed_fraction(step, self)))
        rate = self.final_rate + (self.learning_rate - self.final_rate) * share
        return rate * _warmup(step, self.warmup_steps)


@numeric
class Linear:
    """A straight line from `learning_rate` to `final_rate` at `decay_steps`, after a warm-up.

    >>> schedule = Linear(learning_rate=1.0, warmup_steps=2, decay_steps=12)
    >>> [round(float(schedule(s)), 3) for s in (0, 1, 2, 7, 12, 20)]
    [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """

    learning_rate: Number
    decay_steps: Number
    final_rate: Number = 0.0
    warmup_steps: Number = 0

    def __post_init__(self) -> None:
        _check_decay("Linear", self)

    def __call__(self, step: Step) -> Float[Array, ""]:
        share = 1.0 - _decayed_fraction(step, self)
        rate = self.final_rate + (self.learning_rate - self.final_rate) * share
        return rate * _warmup(step, self.warmup_steps)


def _warmup(step: Step, warmup_steps: Number) -> Float[Array, ""]:
    """Rises in equal parts to 1 at step `warmup_steps` - 1: the first step does learn."""
    return jnp.minimum(1.0, (jnp.asarray(step, jnp.float32) + 1.0) / jnp.maximum(warmup_steps, 1))


def _decayed_fraction(step: Step, schedule: Cosine | Linear) -> Float[Array, ""]:
    past = jnp.asarray(step, jnp.float32) - schedule.warmup_steps
    # A run cut shorter than its warm-up, to try something, has no decay and is no mistake.
    length = jnp.maximum(schedule.decay_steps - schedule.warmup_steps, 1)
    return jnp.clip(past / length, 0.0, 1.0)


def _check(owner: str, **numbers: Number) -> None:
    for name, value in numbers.items():
        check_number(f"{owner}.{name}", value, "at least 0", lambda x: x >= 0)


def _check_decay(owner: str, schedule: Cosine | Linear) -> None:
    _check(
        owner,
        learning_rate=schedule.learning_rate,
        final_rate=schedule.final_rate,
        warmup_steps=schedule.warmup_steps,
    )
    check_number(f"{owner}.decay_steps", schedule.decay_steps, "at least 1", lambda n: n >= 1)

"""Learning rates with several stages: a plateau, restarts, or schedules one after the other."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from t5lite.core.errors import UserError
from t5lite.core.fields import check_field_choice, check_fields, field_name
from t5lite.core.numbers import Number, check_number, numeric, static
from t5lite.optimizers.function_schedule import schedule_from
from t5lite.optimizers.schedules import DECAYS, StepNumber, warmup_fraction


@numeric
class WarmupStableDecaySchedule:
    """One rate between a warm-up and a decay, so that a run can be prolonged before it decays.

    Args:
        learning_rate: the rate between the two.
        decay_start: the step, counted from the start of the run, at which the decay starts.
        decay_steps: the step, counted from the start of the run, at which it ends.
        final_rate: the rate from there on.
        warmup_steps: steps of a linear warm-up from 0; 0 for none.
        decay: the shape of the decay, "linear", "cosine", or "square_root", which is one minus the
            square root of the fraction that is over.

    Raises:
        UserError: if a number is out of range, or the decay ends before it starts.

    >>> schedule = WarmupStableDecaySchedule(
    ...     learning_rate=1.0, warmup_steps=2, decay_start=10, decay_steps=14)
    >>> [round(float(schedule(s)), 3) for s in (0, 1, 9, 10, 11, 14, 20)]
    [0.5, 1.0, 1.0, 1.0, 0.75, 0.0, 0.0]

    Source: Hu et al., "MiniCPM", section 4; "square_root" is of Hägele et al., "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations", equation 2.
    """

    gin_name = "WarmupStableDecay"

    learning_rate: Number
    decay_start: Number
    decay_steps: Number
    final_rate: Number = 0.0
    warmup_steps: Number = 0
    decay: str = static(default="linear")

    def __post_init__(self) -> None:
        names = ("learning_rate", "decay_start", "final_rate", "warmup_steps")
        check_fields(self, names, "at least 0", lambda x: x >= 0)
        check_fields(self, ("decay_steps",), "at least 1", lambda n: n >= 1)
        check_field_choice(self, "decay", DECAYS)
        start = self.decay_start
        if isinstance(start, int | float):
            rule = f"at least {field_name(self, 'decay_start')} ({start})"
            check_fields(self, ("decay_steps",), rule, lambda n: n >= start)

    def __call__(self, step: StepNumber) -> Float[Array, ""]:
        past = jnp.asarray(step, jnp.float32) - self.decay_start
        length = jnp.maximum(self.decay_steps - self.decay_start, 1)
        share = DECAYS[self.decay](jnp.clip(past / length, 0.0, 1.0))
        rate = self.final_rate + (self.learning_rate - self.final_rate) * share
        return rate * warmup_fraction(step, self.warmup_steps)


@numeric
class CosineRestartsSchedule:
    """Half a cosine from a peak to `final_rate` again and again, after a warm-up.

    Cycle i starts at the whole step that is nearest to the sum of the lengths of those before it.

    Args:
        learning_rate: the first peak.
        cycle_steps: steps of the first cycle, which begins after the warm-up.
        cycle_factor: the length of each further cycle over that of the one before; at least 1.
        peak_factor: the peak of each further cycle over that of the one before.
        final_rate: the rate at the end of each cycle.
        warmup_steps: steps of a linear warm-up from 0; 0 for none.

    Raises:
        UserError: if a number is out of range.

    >>> schedule = CosineRestartsSchedule(
    ...     learning_rate=1.0, cycle_steps=4, cycle_factor=2.0, peak_factor=0.5)
    >>> [round(float(schedule(s)), 3) for s in (0, 2, 3, 4, 8, 12)]
    [1.0, 0.5, 0.146, 0.5, 0.25, 0.25]

    Source: Loshchilov and Hutter, "SGDR", equation 5.
    """

    gin_name = "CosineRestarts"

    learning_rate: Number
    cycle_steps: Number
    cycle_factor: Number = 1.0
    peak_factor: Number = 1.0
    final_rate: Number = 0.0
    warmup_steps: Number = 0

    def __post_init__(self) -> None:
        names = ("learning_rate", "peak_factor", "final_rate", "warmup_steps")
        check_fields(self, names, "at least 0", lambda x: x >= 0)
        check_fields(self, ("cycle_steps", "cycle_factor"), "at least 1", lambda n: n >= 1)

    def __call__(self, step: StepNumber) -> Float[Array, ""]:
        past = jnp.maximum(jnp.asarray(step, jnp.float32) - self.warmup_steps, 0.0)
        growth = jnp.asarray(self.cycle_factor, jnp.float32) - 1.0
        # 1 where the closed form for growing cycles would divide by 0; it is not chosen there.
        grows = jnp.where(growth > 0, growth, 1.0)
        log_factor = jnp.log1p(grows)

        def start_of(cycle: Float[Array, ""]) -> Float[Array, ""]:
            cycles = jnp.where(growth > 0, jnp.expm1(cycle * log_factor) / grows, cycle)
            return jnp.round(self.cycle_steps * cycles)

        passed = past / self.cycle_steps
        guess = jnp.floor(jnp.where(growth > 0, jnp.log1p(passed * grows) / log_factor, passed))
        # Rounding may put a step near a boundary into the cycle before or after its own.
        late = (past < start_of(guess)).astype(jnp.float32)
        early = (past >= start_of(guess + 1.0)).astype(jnp.float32)
        cycle = guess - late + early
        start = start_of(cycle)
        fraction = (past - start) / (start_of(cycle + 1.0) - start)
        peak = self.learning_rate * jnp.asarray(self.peak_factor, jnp.float32) ** cycle
        share = DECAYS["cosine"](jnp.clip(fraction, 0.0, 1.0))
        rate = self.final_rate + (peak - self.final_rate) * share
        return rate * warmup_fraction(step, self.warmup_steps)


@numeric
class JoinedSchedule:
    """Schedules one after the other; each counts its steps from its own start.

    Args:
        schedules: at least two.
        boundaries: the steps of the run at which the second and each later schedule starts.
    """

    gin_name = "Joined"

    schedules: tuple[Any, ...]
    boundaries: tuple[Number, ...]

    def __call__(self, step: StepNumber) -> Float[Array, ""]:
        now = jnp.asarray(step, jnp.float32)
        rate = self.schedules[0](step)
        for boundary, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            # Before its start its rate is not chosen, but must be finite.
            own = jnp.maximum(now - boundary, 0.0).astype(jnp.int32)
            rate = jnp.where(now >= boundary, schedule(own), rate)
        return rate


def joined(*, schedules: Sequence[Any], boundaries: Sequence[Any]) -> JoinedSchedule:
    """Returns schedules one after the other; each counts its steps from its own start.

    Args:
        schedules: at least two, as they may be bound to `learning_rate` of an optimizer: schedules,
            "module:function" of one's own, or numbers for constant rates.
        boundaries: the steps of the run at which the second and each later schedule starts.

    Raises:
        UserError: if the numbers of schedules and boundaries do not fit, boundaries do not rise, or
            a schedule cannot be used.

    >>> schedule = joined(schedules=[1.0, 0.5, 0.1], boundaries=[2, 4])
    >>> [round(float(schedule(s)), 3) for s in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.1, 0.1]
    """
    for name, value in (("schedules", schedules), ("boundaries", boundaries)):
        if not isinstance(value, list | tuple):
            raise UserError(f"Joined.{name} must be a list, got {value!r}")
    if len(schedules) < 2 or len(boundaries) != len(schedules) - 1:
        raise UserError(
            "Joined.boundaries must be one fewer than Joined.schedules, of which there are at "
            f"least two, got {len(boundaries)} and {len(schedules)}"
        )
    before = 0
    for boundary in boundaries:
        rule = "rising whole numbers from 1"
        check_number("Joined.boundaries", boundary, rule, lambda n: n % 1 == 0)
        if boundary <= before:
            raise UserError(f"Joined.boundaries must be {rule}, got {list(boundaries)}")
        before = boundary
    return JoinedSchedule(
        schedules=tuple(schedule_from("Joined.schedules", each) for each in schedules),
        boundaries=tuple(boundaries),
    )

"""Schedules of several stages against the same formulas in NumPy's float64."""

import math

import jax
import numpy as np
import pytest

from t5lite import configurables
from t5lite.core.errors import UserError
from t5lite.core.numbers import as_inputs
from t5lite.optimizers.staged_schedules import (
    CosineRestartsSchedule,
    WarmupStableDecaySchedule,
    joined,
)

# Rates are computed in float32 from steps of up to five digits.
TOLERANCE = 2e-5


def rates(schedule, steps):
    compiled = jax.jit(lambda inputs, step: inputs(step))
    return [float(compiled(as_inputs(schedule), np.int32(step))) for step in steps]


def stable(step, *, peak, warmup, start, end, final, left):
    rate = peak
    if step >= start:
        rate = final + (peak - final) * left(min(1.0, (step - start) / (end - start)))
    return rate * min(1.0, (step + 1) / max(warmup, 1))


def restarts(step, *, peak, cycle, factor, peak_factor, final, warmup):
    past = max(step - warmup, 0)
    number = 0
    while past >= round(cycle * sum(factor**i for i in range(number + 1))):
        number += 1
    start, end = (round(cycle * sum(factor**i for i in range(n))) for n in (number, number + 1))
    top = peak * peak_factor**number
    rate = final + (top - final) * (1 + math.cos(math.pi * (past - start) / (end - start))) / 2
    return rate * min(1.0, (step + 1) / max(warmup, 1))


@pytest.mark.parametrize(
    ("decay", "left"),
    [
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: (1 + math.cos(math.pi * x)) / 2),
        ("square_root", lambda x: 1 - math.sqrt(x)),
    ],
)
def test_warmup_stable_decay_equals_its_formula(decay, left, rng):
    peak, final = rng.uniform(0.1, 1.0), rng.uniform(0.0, 0.1)
    warmup, start, end = (int(n) for n in np.cumsum(rng.integers(2, 2000, 3)))
    schedule = WarmupStableDecaySchedule(
        learning_rate=peak,
        final_rate=final,
        warmup_steps=warmup,
        decay_start=start,
        decay_steps=end,
        decay=decay,
    )
    steps = sorted({0, warmup - 1, start - 1, start, end, *map(int, rng.integers(0, end + 9, 40))})
    expected = [
        stable(s, peak=peak, warmup=warmup, start=start, end=end, final=final, left=left)
        for s in steps
    ]
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=TOLERANCE)


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0])
def test_cosine_restarts_equal_their_formula_at_every_boundary(factor, rng):
    numbers = {"peak": rng.uniform(0.1, 1.0), "final": rng.uniform(0.01, 0.05)}
    numbers |= {"peak_factor": rng.uniform(0.7, 1.0), "warmup": int(rng.integers(0, 30))}
    # The end of 2.3 cycles of 5 n steps may be halfway between steps; float32 rounds it either way.
    cycle = int(rng.choice([n for n in range(6, 60) if n % 5]))
    schedule = CosineRestartsSchedule(
        learning_rate=numbers["peak"],
        final_rate=numbers["final"],
        peak_factor=numbers["peak_factor"],
        warmup_steps=numbers["warmup"],
        cycle_steps=cycle,
        cycle_factor=factor,
    )
    ends = [round(cycle * sum(factor**i for i in range(n))) + numbers["warmup"] for n in range(7)]
    steps = sorted({*(e + d for e in ends for d in (-1, 0, 1) if e + d >= 0), *range(0, 200, 7)})
    expected = [restarts(s, cycle=cycle, factor=factor, **numbers) for s in steps]
    # Of cosines close to -1, and of a fraction of a cycle of float32 steps.
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=10 * TOLERANCE)


def test_joined_schedules_are_bound_by_scopes_and_their_numbers_are_inputs():
    def load(*bindings):
        bound = [
            "AdamW.learning_rate=@Joined()",
            "Joined.schedules=[@first/Linear(), 0.25, @last/Cosine()]",
            "Joined.boundaries=[10, 20]",
            "first/Linear.learning_rate=1.0",
            "first/Linear.decay_steps=10",
            "first/Linear.final_rate=0.5",
            "first/Linear.warmup_steps=0",
            "last/Cosine.learning_rate=0.2",
            "last/Cosine.decay_steps=8",
            "last/Cosine.warmup_steps=0",
        ]
        (run,) = configurables.load(["gin/run/quickstart.gin"], [*bound, *bindings], [], "train")
        return run.optimizer.learning_rate

    schedule = load()
    expected = [1 - 0.05 * s for s in range(10)] + [0.25] * 10
    expected += [0.1 * (1 + math.cos(math.pi * min(s, 8) / 8)) for s in range(12)]
    np.testing.assert_allclose(rates(schedule, range(32)), expected, rtol=TOLERANCE, atol=1e-8)
    other = load("Joined.boundaries=[12, 30]", "last/Cosine.learning_rate=0.3")
    assert jax.tree.structure(schedule) == jax.tree.structure(other)
    assert jax.tree.leaves(schedule) != jax.tree.leaves(other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: WarmupStableDecaySchedule(learning_rate=1.0, decay_start=9, decay_steps=8),
            r"WarmupStableDecay.decay_steps must be at least WarmupStableDecay.decay_start \(9\)",
        ),
        (
            lambda: WarmupStableDecaySchedule(
                learning_rate=1.0, decay_start=1, decay_steps=8, decay="sqrt"
            ),
            "WarmupStableDecay.decay is unknown: got .sqrt.",
        ),
        (
            lambda: CosineRestartsSchedule(learning_rate=1.0, cycle_steps=9, cycle_factor=0.5),
            "CosineRestarts.cycle_factor must be at least 1, got 0.5",
        ),
        (lambda: joined(schedules=[1.0], boundaries=[]), "one fewer than Joined.schedules"),
        (lambda: joined(schedules=[1.0, 2.0], boundaries=[0]), "rising whole numbers from 1"),
        (
            lambda: joined(schedules=[1.0, 2.0, 3.0], boundaries=[5, 5]),
            r"Joined.boundaries must be rising whole numbers from 1, got \[5, 5\]",
        ),
        (lambda: joined(schedules=[1.0, "x"], boundaries=[5]), "Joined.schedules must be a number"),
    ],
)
def test_stages_that_cannot_be_are_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()

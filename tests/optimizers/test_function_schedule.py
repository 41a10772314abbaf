import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite import configurables
from t5lite.core.errors import UserError
from t5lite.optimizers.function_schedule import as_schedule, optax_schedules
from t5lite.optimizers.optimizer import make_optimizer


def triangle(step):
    return jnp.where(step < 5, step, 10 - step) / 10


def branches(step):
    return 1.0 if step < 5 else 0.1


def two_rates(step):
    return jnp.stack([step, step])


def rates(schedule, steps=8):
    compiled = jax.jit(schedule)
    return [float(compiled(jnp.int32(step))) for step in range(steps)]


def load_schedule(*bindings):
    (run,) = configurables.load(["gin/run/quickstart.gin"], bindings, [], "train")
    return run.optimizer.learning_rate


def test_a_function_of_ones_own_is_a_schedule():
    own = f"{__name__}:triangle"
    made = make_optimizer(optax.adamw, name="AdamW", learning_rate=own)
    np.testing.assert_allclose(rates(made.learning_rate), [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.4, 0.3])
    assert made == make_optimizer(optax.adamw, name="AdamW", learning_rate=own)
    bound = load_schedule(f"AdamW.learning_rate={own}")
    assert rates(bound) == rates(made.learning_rate)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (branches, "AdamW.learning_rate: branches must return the rate of a traced step, got "),
        (two_rates, r"AdamW.learning_rate: two_rates must return one number, got shape \(2,\)"),
        (lambda: 1.0, "must return the rate of a traced step, got TypeError"),
    ],
)
def test_a_function_that_is_no_schedule_is_rejected_on_one_line(function, message):
    with pytest.raises(UserError, match=message) as raised:
        as_schedule("AdamW.learning_rate", function)
    assert "\n" not in str(raised.value)


def test_optax_schedules_are_bound_by_name():
    schedule = load_schedule(
        "AdamW.learning_rate=@optax.warmup_cosine_decay_schedule()",
        "optax.warmup_cosine_decay_schedule.init_value=0.0",
        "optax.warmup_cosine_decay_schedule.peak_value=1.0",
        "optax.warmup_cosine_decay_schedule.warmup_steps=2",
        "optax.warmup_cosine_decay_schedule.decay_steps=6",
    )
    wanted = optax.warmup_cosine_decay_schedule(0.0, 1.0, 2, 6)
    np.testing.assert_allclose(rates(schedule), [wanted(s) for s in range(8)], atol=1e-6)


def test_schedules_of_optax_are_equal_and_hashable_whatever_they_take():
    build = optax_schedules()["piecewise_constant_schedule"]
    some, other = (build(init_value=1.0, boundaries_and_scales={3: scale}) for scale in (0.5, 0.1))
    assert rates(some, 5) == [1.0, 1.0, 1.0, 0.5, 0.5]
    assert some == dataclasses.replace(some)
    assert hash(some) == hash(dataclasses.replace(some))
    assert some != other


def test_optax_rejects_its_arguments_on_one_line():
    with pytest.raises(UserError, match=r"optax.cosine_decay_schedule: .*positive.*, got \{"):
        optax_schedules()["cosine_decay_schedule"](init_value=1.0, decay_steps=0)

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite import public_names
from t5lite.core.errors import UserError
from t5lite.core.numbers import as_inputs
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.optimizers.schedules import Cosine, Linear

OPTAX_NAMES = sorted(name for name in public_names.TABLE if name.startswith("optax."))


def test_optax_optimizers_are_found():
    assert {"optax.adamw", "optax.lamb", "optax.sgd", "optax.adafactor"} <= set(OPTAX_NAMES)


@pytest.mark.filterwarnings("ignore:Specifying a key will be required")
@pytest.mark.parametrize("name", OPTAX_NAMES)
def test_every_optax_optimizer_takes_its_numbers_as_inputs(name):
    factory = getattr(optax, name.removeprefix("optax."))
    params = {"w": jnp.linspace(-1.0, 1.0, 32).reshape(4, 8)}

    @jax.jit
    def update(optimizer):
        rate = optimizer.learning_rate(0)
        transformation = optimizer.transformation(rate, None)
        return transformation.update(params, transformation.init(params), params)[0]

    # Bound numbers, none of them the default, so that none can hide in the program.
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(factory).parameters.items()
        if isinstance(parameter.default, float) and key != "learning_rate"
    }
    bound = {key: value * 0.9 for key, value in defaults.items()}
    for rate in (0.1, 0.2):
        made = make_optimizer(factory, name=name, learning_rate=rate, **bound)
        result = update(as_inputs(made))
        expected = factory(learning_rate=rate, **bound)
        expected = expected.update(params, expected.init(params), params)[0]
        # The same arithmetic with numbers rounded to float32 first.
        np.testing.assert_allclose(result["w"], expected["w"], rtol=1e-4, atol=1e-6)
    assert update._cache_size() == 1


def test_a_whole_number_for_a_float_is_an_input():
    made = make_optimizer(optax.adamw, name="AdamW", learning_rate=1e-3, weight_decay=0)
    assert made.numbers["weight_decay"] == 0.0


def test_what_is_no_number_is_refused():
    with pytest.raises(UserError, match="AdamW.b1 must be a number, got 'high'"):
        make_optimizer(optax.adamw, name="AdamW", learning_rate=1e-3, b1="high")


@pytest.mark.parametrize("kind", [Cosine, Linear])
def test_a_run_shorter_than_its_warm_up_only_warms_up(kind):
    schedule = kind(learning_rate=1.0, warmup_steps=10, decay_steps=5)
    rates = [float(schedule(step)) for step in range(5)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)

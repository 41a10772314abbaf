import functools
import inspect
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from t5lite import configurables, public_names
from t5lite.core.errors import UserError
from t5lite.core.numbers import as_inputs
from t5lite.optimizers.optax_table import REJECTED, optax_factories
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.optimizers.schedules import CosineSchedule, LinearSchedule

FACTORIES = optax_factories()


def test_every_optimizer_of_optax_is_found_or_rejected_by_name():
    packages = {"optax": optax, "optax.contrib": optax.contrib}
    missing = []
    for package, module in packages.items():
        for short in dir(module):
            function, name = getattr(module, short), f"{package}.{short}"
            if short.startswith(("_", "scale_by")):
                continue
            is_function = inspect.isfunction(function) or isinstance(function, functools.partial)
            if not is_function or name in public_names.TABLE or name in REJECTED:
                continue
            signature = inspect.signature(function)
            is_optimizer = "learning_rate" in signature.parameters
            returns = "GradientTransformation" in str(signature.return_annotation)
            # Outside of contrib, transformations without a learning rate are parts.
            if is_optimizer or (package == "optax.contrib" and returns):
                missing.append(name)
    assert not missing
    assert {"optax.nadam", "optax.nadamw", "optax.contrib.prodigy"} <= public_names.TABLE.keys()


@pytest.mark.proof
@pytest.mark.filterwarnings("ignore:Specifying a key will be required")
@pytest.mark.parametrize("name", sorted(FACTORIES.keys() - {"optax.contrib.muon"}))
def test_every_optax_optimizer_takes_its_numbers_as_inputs(name):
    factory = operator.attrgetter(name.removeprefix("optax."))(optax)
    params = {"w": jnp.linspace(-1.0, 1.0, 32).reshape(4, 8)}
    loss = jnp.float32(0.7)

    @jax.jit
    def update(optimizer):
        rate = optimizer.learning_rate(0)
        made = optimizer.transformation(rate, None)
        extra = optimizer.loss_argument(made, lambda: loss)
        return made.update(params, made.init(params), params, **extra)[0]

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
        expected = optax.with_extra_args_support(factory(learning_rate=rate, **bound))
        expected = expected.update(params, expected.init(params), params, value=loss)[0]
        # The same arithmetic with numbers rounded to float32 first.
        np.testing.assert_allclose(result["w"], expected["w"], rtol=1e-4, atol=1e-6)
    assert update._cache_size() == 1


def test_a_whole_number_for_a_float_is_an_input():
    made = make_optimizer(optax.adamw, name="AdamW", learning_rate=1e-3, weight_decay=0)
    assert made.numbers["weight_decay"] == 0.0


def test_tuples_of_numbers_are_inputs():
    made = make_optimizer(
        optax.contrib.prodigy, name="optax.contrib.prodigy", learning_rate=1.0, betas=[0.8, 0.99]
    )
    assert made.numbers["betas"] == (0.8, 0.99)
    assert len(jax.tree.leaves(as_inputs(made))) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b1": "high"}, "AdamW.b1 must be a number, got 'high'"),
        ({"learning_rate": None}, "AdamW.learning_rate is required and not bound"),
        ({"learning_rate": "high"}, "AdamW.learning_rate must be a number, got 'high'"),
        ({"learning_rate": "nowhere:rate"}, "AdamW.learning_rate: 'nowhere:rate' cannot be impo"),
    ],
)
def test_what_is_no_number_is_rejected(arguments, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(optax.adamw, name="AdamW", **{"learning_rate": 1e-3, **arguments})


def test_a_tuple_of_another_length_is_rejected():
    with pytest.raises(UserError, match=r"prodigy.betas must be 2 numbers, got \[0.9\]"):
        make_optimizer(optax.contrib.prodigy, name="prodigy", learning_rate=1.0, betas=[0.9])


def test_an_optimizer_that_cannot_train_is_rejected_with_the_reason():
    with pytest.raises(UserError, match="optax.contrib.sophia cannot train .*: it estimates"):
        configurables.load(
            ["gin/run/quickstart.gin"],
            ["train.optimizer=@optax.contrib.sophia()"],
            [],
            "train",
        )


@pytest.mark.parametrize("kind", [CosineSchedule, LinearSchedule])
def test_a_run_shorter_than_its_warm_up_only_warms_up(kind):
    schedule = kind(learning_rate=1.0, warmup_steps=10, decay_steps=5)
    rates = [float(schedule(step)) for step in range(5)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)

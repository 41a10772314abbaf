import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from t5lite import configurables
from t5lite.core.errors import UserError
from t5lite.optimizers.adafactor import adafactor
from t5lite.optimizers.by_pattern import optimizers_by_pattern
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.optimizers.schedules import LinearSchedule
from t5lite.parallel.mesh import Mesh
from tests import small

FALLING = LinearSchedule(learning_rate=0.1, decay_steps=4)
ADAM = make_optimizer(optax.adamw, name="AdamW", learning_rate=FALLING, weight_decay=0.1)
SGD = make_optimizer(optax.sgd, name="sgd", learning_rate=0.5)
MOMO = make_optimizer(optax.contrib.momo, name="momo", learning_rate=0.5)
ADAFACTOR = make_optimizer(adafactor, name="Adafactor", learning_rate=0.01)
# AdamW divides by 1 - 0.999^step, which float32 knows to four digits at first.
ROUNDING = {"rtol": 1e-4, "atol": 3e-5}
AXES = {"a": {"scale": ("embed",)}, "b": {"kernel": ("embed", "mlp")}}


def test_each_optimizer_updates_its_own_parameters_as_alone(rng):
    params = {"a": {"scale": rng.normal(size=3)}, "b": {"kernel": rng.normal(size=(3, 2))}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    both = optimizers_by_pattern(optimizers=[("a/.*", SGD), (".*", ADAM)])
    both.check(["a/scale", "b/kernel"])
    state = both.at(0, AXES)[1].init(params)
    expected = jax.tree.map(np.asarray, params)
    first = second = np.zeros((3, 2))
    for step in range(3):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
        rate, transformation = both.at(step, AXES)
        assert float(rate) == 0.5
        updates, state = transformation.update(grads, state, params, value=jnp.float32(1.0))
        params = optax.apply_updates(params, updates)
        expected["a"]["scale"] = expected["a"]["scale"] - 0.5 * np.asarray(grads["a"]["scale"])
        # AdamW in NumPy's float64.
        grad = np.asarray(grads["b"]["kernel"], np.float64)
        first = 0.9 * first + 0.1 * grad
        second = 0.999 * second + 0.001 * grad**2
        means = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        old = expected["b"]["kernel"]
        change = means[0] / (np.sqrt(means[1]) + 1e-8) + 0.1 * old
        expected["b"]["kernel"] = old - 0.1 * (1 - step / 4) * change
        jax.tree.map(lambda p, e: np.testing.assert_allclose(p, e, **ROUNDING), params, expected)


@pytest.mark.proof
def test_a_run_with_two_optimizers_trains_on_a_mesh_and_resumes(text_file, data_dir, tmp_path):
    # Adafactor needs the axes, and MoMo the loss.
    both = optimizers_by_pattern(optimizers=[(".*/scale", MOMO), (".*", ADAFACTOR)])
    choices = {"optimizer": both, "mesh": Mesh(fsdp=2), "checkpoint_every_steps": 1}

    def train(name, steps):
        folder = tmp_path / name
        return small.train(small.run(text_file, data_dir, folder, total_steps=steps, **choices))

    train("a", 1)
    resumed, whole = train("a", 3), train("b", 3)
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (resumed, whole)))
    assert set(whole.opt_state) == {"optimizer_0", "optimizer_1"}


def test_optimizers_are_bound_by_pattern():
    bindings = [
        "train.optimizer=@OptimizersByPattern()",
        "OptimizersByPattern.optimizers=[('.*/scale', @optax.sgd()), ('.*', @AdamW())]",
        "optax.sgd.learning_rate=0.1",
    ]
    (run,) = configurables.load(["gin/run/quickstart.gin"], bindings, [], "train")
    assert run.optimizer.patterns == (".*/scale", ".*")
    assert [o.factory.__name__ for o in run.optimizer.optimizers] == ["sgd", "adamw"]


@pytest.mark.parametrize(
    ("optimizers", "message"),
    [
        ([("decoder/.*", SGD)], "must match every parameter that trains, got none for encoder"),
        ([(".*", SGD), ("decoder/.*", ADAM)], "'decoder/.*' matches decoder/.*, for which an earl"),
        ([("x", SGD), (".*", ADAM)], "OptimizersByPattern.optimizers: 'x' matches no parameter"),
    ],
)
def test_patterns_that_do_not_divide_the_parameters_are_rejected(
    optimizers, message, text_file, data_dir, tmp_path
):
    both = optimizers_by_pattern(optimizers=optimizers)
    run = small.run(text_file, data_dir, tmp_path, optimizer=both)
    with pytest.raises(UserError, match=message):
        small.program_of(run)


@pytest.mark.parametrize(
    ("optimizers", "message"),
    [
        ([], "must name at least one pattern"),
        ([SGD], "must be pairs of a pattern and an optimizer, such as"),
        ([("(", SGD)], r"must be regular expressions, got '\('"),
    ],
)
def test_what_is_no_pair_is_rejected(optimizers, message):
    with pytest.raises(UserError, match=f"OptimizersByPattern.optimizers {message}"):
        optimizers_by_pattern(optimizers=optimizers)

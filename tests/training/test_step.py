import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.core.lazy import by_name
from t5lite.core.numbers import as_inputs
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.models.architectures import EncoderDecoder
from t5lite.optimizers.adafactor import adafactor
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.optimizers.schedules import CosineSchedule
from t5lite.parallel.mesh import Mesh
from t5lite.parallel.sharding import batch_sharding, make_global, on_mesh
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.state import abstract_state, initial_state
from t5lite.training.step import make_train_step
from tests import small

# float32 sums of up to a few thousand numbers in another order, over five steps.
ROUNDING = 1e-5


def hyper(**changes):
    choices = {
        "optimizer": make_optimizer(
            adafactor, name="Adafactor", learning_rate=0.05, min_dim_size_to_factor=4
        ),
        "loss": CrossEntropy(),
        "seed": np.int32(0),
        "dropout_rate": None,
        "max_gradient_norm": 1.0,
    }
    return Hyperparameters(**{**choices, **changes})


def batch(seed):
    return small.batch(seed, rows=8)


_programs = {}


def program(mesh, inputs, microbatches, config):
    """The first state and the step; made once for all hyperparameters that are its inputs."""
    key = (repr(mesh), microbatches, config, jax.tree.structure(inputs))
    if key not in _programs:
        model = EncoderDecoder(config)
        sharding = batch_sharding(mesh, 8)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch(0)
        )
        abstract, axes = abstract_state(model, inputs, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        initial = jax.jit(
            lambda params, h: initial_state(model, h, axes, params=params),
            out_shardings=shardings,
        )
        init = functools.partial(initial, jax.device_get(small.params(model)))
        step = make_train_step(model, axes, microbatches=microbatches)
        jitted = jax.jit(step, donate_argnums=1, out_shardings=(shardings, None))
        _programs[key] = init, jitted.lower(inputs, abstract, shapes).compile()
    return _programs[key]


def train(mesh, hyper, *, steps=5, microbatches=1, config=None):
    """Losses of some steps, the last state, and the compiled text."""
    place = make_global(batch_sharding(mesh, 8), 8)
    inputs = as_inputs(hyper)
    with on_mesh(mesh):
        init, step = program(mesh, inputs, microbatches, config or small.config())
        state = init(inputs)
        losses = []
        for i in range(steps):
            state, sums = step(inputs, state, place(batch(i)))
            losses.append(float(sums["loss"] / sums["tokens"]))
    return losses, state, step


def mesh_of_one():
    """One of the eight devices."""
    return Mesh().make(jax.devices()[:1])


@pytest.fixture(scope="module")
def one_device():
    """What one device makes of five steps."""
    return train(mesh_of_one(), hyper())


SPLIT = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.proof
@pytest.mark.parametrize(
    ("sizes", "microbatches"),
    [
        (SPLIT, 1),
        (SPLIT, 2),
        ({"fsdp": 8, "data": 1}, 1),
        ({"data": 8}, 1),
        ({"data": 4, "tensor": 2}, 1),
    ],
    ids=str,
)
def test_eight_devices_train_as_one(sizes, microbatches, one_device):
    losses, state, _ = train(Mesh(**sizes).make(), hyper(), microbatches=microbatches)
    np.testing.assert_allclose(losses, one_device[0], rtol=ROUNDING)
    jax.tree.map(
        # Parameters are of order 1 and move by some 0.05 in all.
        lambda a, b: np.testing.assert_allclose(a, b, atol=20 * ROUNDING),
        jax.device_get(state.params),
        jax.device_get(one_device[1].params),
    )


@pytest.mark.proof
def test_each_device_has_a_share_of_parameters_and_moments():
    _, state, _ = train(Mesh(**SPLIT).make(), hyper(), steps=1)
    query = state.params["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert query.sharding.shard_shape(query.shape) == (2, 8, 1, 6)
    moment = state.opt_state.second_moment["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert moment.row.sharding.shard_shape(moment.row.shape) == (2, 8, 1, 1)
    assert moment.column.sharding.shard_shape(moment.column.shape) == (2, 1, 1, 6)


def test_accumulation_equals_the_whole_batch(one_device):
    losses, _, _ = train(mesh_of_one(), hyper(), microbatches=4)
    np.testing.assert_allclose(losses, one_device[0], rtol=ROUNDING)


@pytest.mark.proof
def test_the_loss_is_divided_by_the_target_tokens_of_the_whole_batch():
    model = EncoderDecoder(small.config())
    shapes = jax.tree.map(jnp.asarray, batch(3))
    axes = abstract_state(model, hyper(), mesh_of_one())[1]
    step = make_train_step(model, axes)
    numbers = as_inputs(
        hyper(
            optimizer=make_optimizer(optax.sgd, name="sgd", learning_rate=1.0),
            loss=CrossEntropy(z_loss=0.0),
            max_gradient_norm=None,
        )
    )
    state = initial_state(model, numbers, axes, params=small.params(model))
    after, sums = jax.jit(step)(numbers, state, shapes)

    def mean_loss(params):
        logits = model.apply({"params": params}, shapes)
        log_probs = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_probs, shapes["decoder_target_tokens"][..., None], 2)
        weights = shapes["decoder_loss_weights"]
        return -jnp.sum(picked[..., 0] * weights) / jnp.sum(weights)

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    assert float(sums["loss"] / sums["tokens"]) == pytest.approx(float(loss), rel=ROUNDING)
    moved = jax.tree.map(lambda a, b: a - b, state.params, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), moved, grads)
    norm = float(optax.tree.norm(grads))
    assert float(sums["gradient_norm"]) == pytest.approx(norm, rel=ROUNDING)


def test_exactly_the_documented_numbers_are_inputs():
    optimizer = make_optimizer(
        optax.adamw,
        name="AdamW",
        learning_rate=CosineSchedule(learning_rate=0.1, decay_steps=10),
    )
    numbers = hyper(optimizer=optimizer, dropout_rate=0.1)
    assert set(by_name(numbers)) == {
        "seed",
        "dropout_rate",
        "max_gradient_norm",
        *(f"loss/{name}" for name in ("z_loss", "label_smoothing", "load_balance", "router_z")),
        *(
            f"optimizer/learning_rate/{name}"
            for name in ("learning_rate", "decay_steps", "final_rate", "warmup_steps")
        ),
        *(f"optimizer/numbers/{name}" for name in ("b1", "b2", "eps", "eps_root", "weight_decay")),
    }


@pytest.mark.proof
def test_numbers_are_inputs_of_the_program_not_constants_in_it():
    model = EncoderDecoder(small.config())
    shapes = jax.tree.map(jnp.asarray, batch(0))

    def text(**changes):
        numbers = hyper(dropout_rate=0.1, **changes)
        state, axes = abstract_state(model, numbers, mesh_of_one())
        step = jax.jit(make_train_step(model, axes))
        return step.lower(as_inputs(numbers), state, shapes).as_text()

    plain = text()
    adafactor_like = make_optimizer(
        adafactor,
        name="Adafactor",
        learning_rate=0.7,
        decay_rate=0.5,
        epsilon2=1e-2,
        min_dim_size_to_factor=4,
    )
    assert text(optimizer=adafactor_like) == plain
    assert text(loss=CrossEntropy(z_loss=0.1, label_smoothing=0.2)) == plain
    assert text(seed=np.int32(7), max_gradient_norm=0.3) == plain
    assert text(max_gradient_norm=None) != plain


@pytest.mark.proof
def test_dropout_follows_the_seed_and_the_step():
    mesh = mesh_of_one()
    numbers = hyper(dropout_rate=0.5)
    first, again = (train(mesh, numbers, steps=3)[0] for _ in range(2))
    assert first == again
    other = train(mesh, dataclasses.replace(numbers, dropout_rate=0.4), steps=3)[0]
    assert first != other


def test_a_large_gradient_is_clipped_to_its_norm():
    model = EncoderDecoder(small.config())
    shapes = jax.tree.map(jnp.asarray, batch(3))
    sgd = make_optimizer(optax.sgd, name="sgd", learning_rate=1.0)
    numbers = as_inputs(hyper(optimizer=sgd, max_gradient_norm=0.01))
    axes = abstract_state(model, hyper(), mesh_of_one())[1]
    state = initial_state(model, numbers, axes, params=small.params(model))
    after, _ = jax.jit(make_train_step(model, axes))(numbers, state, shapes)
    moved = jax.tree.map(lambda a, b: a - b, state.params, after.params)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.01, rel=1e-3)

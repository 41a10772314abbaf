"""Stacked layers are updated as the layers of a model that does not stack them."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.optimizers.optax_table import optax_factories
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.parallel.sharding import state_axes
from tests.proofs import proofs_but

FACTORIES = optax_factories()
# Muon has tests of its own, and noise is drawn for each array.
NAMES = sorted(FACTORIES.keys() - {"optax.contrib.muon", "optax.noisy_sgd"})
KEPT = ("optax.adamw", "optax.adafactor")
AXES = {
    "encoder": {
        "wi": ("layers", "embed", "mlp"),
        "experts": ("layers", "experts", "embed", "mlp"),
        "scale": ("layers", "embed"),
    },
    "decoder": {"wi": ("layers", "embed", "mlp")},
    "embedding": ("vocab", "embed"),
}
SHAPES = {
    "encoder": {"wi": (3, 6, 5), "experts": (3, 2, 6, 5), "scale": (3, 6)},
    "decoder": {"wi": (2, 6, 5)},
    "embedding": (7, 6),
}


def random(rng):
    """Returns arrays whose layers have norms of different sizes."""

    def make(shape):
        return jnp.asarray(
            rng.normal(size=shape)
            * np.exp(rng.normal(size=shape[0])).reshape(-1, *(1,) * (len(shape) - 1)),
            jnp.float32,
        )

    return jax.tree.map(make, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def unstacked(tree):
    """Returns every layer and expert as an array of its own."""
    found = {"embedding": tree["embedding"]}
    for stack, name in (("encoder", "wi"), ("encoder", "scale"), ("decoder", "wi")):
        found |= {f"{stack}{name}{i}": layer for i, layer in enumerate(tree[stack][name])}
    for i, layer in enumerate(tree["encoder"]["experts"]):
        found |= {f"expert{i}{j}": expert for j, expert in enumerate(layer)}
    return found


def trained(made, params, steps, extra):
    update = jax.jit(made.update)
    state = made.init(params)
    for grads in steps:
        updates, state = update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.filterwarnings("ignore:Specifying a key will be required")
@pytest.mark.parametrize("name", proofs_but(KEPT, NAMES))
def test_stacked_layers_are_updated_as_separate_ones(name):
    rng = np.random.default_rng(sum(map(ord, name)))
    params, *steps = (random(rng) for _ in range(4))
    factory = FACTORIES[name]
    original = optax.contrib if name.startswith("optax.contrib.") else optax
    original = getattr(original, name.rpartition(".")[2])
    options = {"min_dim_size_to_factor": 4} if name == "optax.adafactor" else {}
    made = make_optimizer(factory, name=name, learning_rate=0.1, **options)
    ours = made.transformation(0.1, AXES)
    extra = made.loss_argument(ours, lambda: jnp.float32(0.7))
    theirs = optax.with_extra_args_support(original(learning_rate=0.1, **options))
    found = unstacked(trained(ours, params, steps, extra))
    wanted = trained(theirs, unstacked(params), [unstacked(g) for g in steps], extra)
    for key, value in wanted.items():
        # The same sums in another order.
        np.testing.assert_allclose(found[key], value, rtol=2e-4, atol=2e-5, err_msg=key)


def test_norms_of_whole_stacks_would_give_another_update():
    params, grads = (random(np.random.default_rng(seed)) for seed in (0, 1))
    whole = trained(optax.lamb(0.1), params, [grads], {})
    apart = trained(FACTORIES["optax.lamb"](0.1, param_axes=AXES), params, [grads], {})
    np.testing.assert_allclose(apart["embedding"], whole["embedding"], rtol=1e-5)
    assert np.abs(apart["encoder"]["wi"] - whole["encoder"]["wi"]).max() > 0.1


@pytest.mark.parametrize("name", ["optax.lamb", "optax.adafactor", "optax.novograd"])
def test_state_has_the_axes_of_the_parameters(name):
    params = random(np.random.default_rng(0))
    made = FACTORIES[name](0.1, param_axes=AXES)
    state = jax.eval_shape(made.init, params)
    axes = state_axes(state, params, AXES)
    found = {}

    def check(leaf, names):
        found[leaf.shape] = names

    jax.tree.map(check, state, axes)
    assert found[3, 6, 5] == AXES["encoder"]["wi"]
    assert found[3, 2, 6, 5] == AXES["encoder"]["experts"]


def test_numbers_of_such_an_optimizer_are_inputs():
    parameters = inspect.signature(FACTORIES["optax.lamb"]).parameters
    assert parameters["b1"].default == 0.9
    made = make_optimizer(FACTORIES["optax.lamb"], name="optax.lamb", learning_rate=0.1, b1=0.8)
    assert made.numbers["b1"] == 0.8

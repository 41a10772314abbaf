import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.optimizers.adafactor import Factored, adafactor

STEPS = 5


def reference_step(param, grad, moment, step, *, lr, factored, weight_decay=None):
    """One update of one matrix in float64, from the definition; `step` counts from 1."""
    decay = 1 - step**-0.8
    squares = grad**2 + 1e-30
    if factored:
        row, column = moment
        row = decay * row + (1 - decay) * squares.mean(1)
        column = decay * column + (1 - decay) * squares.mean(0)
        moment = row, column
        scaled = grad / np.sqrt(np.outer(row, column) / row.mean())
    else:
        moment = decay * moment + (1 - decay) * squares
        scaled = grad / np.sqrt(moment)
    scaled = scaled / max(1.0, np.sqrt((scaled**2).mean()))
    update = lr * scaled * max(np.sqrt((param**2).mean()), 1e-3)
    decayed = param if weight_decay is None else (1 - weight_decay) * param
    return decayed - update, moment


def _train(param, grads, axes, **arguments):
    transformation = adafactor(0.03, param_axes={"w": axes}, **arguments)
    params = {"w": jnp.asarray(param, jnp.float32)}
    state = transformation.init(params)
    for grad in grads:
        updates, state = transformation.update({"w": jnp.asarray(grad)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["w"]), state


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("weight_decay", [None, 0.01])
def test_matrices_follow_the_definition(factored, weight_decay):
    rng = np.random.default_rng(0)
    shape = (12, 20)
    param = rng.normal(size=shape)
    grads = rng.normal(size=(STEPS, *shape)).astype(np.float32) * 10.0 ** rng.integers(
        -3, 3, STEPS
    )[:, None, None].astype(np.float32)
    moment = (np.zeros(12), np.zeros(20)) if factored else np.zeros(shape)
    expected = param
    for step, grad in enumerate(grads, start=1):
        expected, moment = reference_step(
            expected,
            grad.astype(np.float64),
            moment,
            step,
            lr=0.03,
            factored=factored,
            weight_decay=weight_decay,
        )
    got, state = _train(
        param,
        grads,
        ("embed", "mlp"),
        min_dim_size_to_factor=12 if factored else 13,
        weight_decay_rate=weight_decay,
    )
    assert isinstance(state.second_moment["w"], Factored) == factored
    # Five steps of float32.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_stacked_layers_are_independent_parameters():
    rng = np.random.default_rng(1)
    params = rng.normal(size=(3, 16, 2, 8)) * np.array([0.1, 1, 10])[:, None, None, None]
    grads = rng.normal(size=(STEPS, 3, 16, 2, 8)).astype(np.float32)
    axes = ("embed", "heads", "kv")
    stacked, _ = _train(params, grads, ("layers", *axes), min_dim_size_to_factor=8)
    for i in range(3):
        alone, _ = _train(params[i], grads[:, i], axes, min_dim_size_to_factor=8)
        np.testing.assert_allclose(stacked[i], alone, rtol=1e-5, atol=1e-6)


def test_a_head_kernel_is_factored_as_the_matrix_of_all_heads():
    rng = np.random.default_rng(2)
    param = rng.normal(size=(16, 2, 8))
    grads = rng.normal(size=(STEPS, 16, 2, 8)).astype(np.float32)
    split, _ = _train(param, grads, ("embed", "heads", "kv"), min_dim_size_to_factor=16)
    joined, _ = _train(
        param.reshape(16, 16),
        grads.reshape(STEPS, 16, 16),
        ("embed", "mlp"),
        min_dim_size_to_factor=16,
    )
    np.testing.assert_allclose(split.reshape(16, 16), joined, rtol=1e-5, atol=1e-6)


def test_momentum_is_kept_on_the_scaled_update():
    rng = np.random.default_rng(3)
    param, grads = np.ones((4, 4)), rng.normal(size=(1, 4, 4)).astype(np.float32)
    plain, _ = _train(param, grads, ("embed", "mlp"))
    slowed, _ = _train(param, grads, ("embed", "mlp"), beta1=0.9)
    np.testing.assert_allclose(slowed - param, 0.1 * (plain - param), rtol=1e-4, atol=1e-7)


def test_a_zero_gradient_changes_nothing_and_gives_no_nan():
    got, state = _train(np.ones((4, 4)), np.zeros((2, 4, 4), np.float32), ("embed", "mlp"))
    np.testing.assert_array_equal(got, np.ones((4, 4)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))

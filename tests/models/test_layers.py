import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.models.layers import dropout, linear, rms_norm


def test_rms_norm_equals_float64():
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32) * 100
    scale = np.linspace(0.5, 2, 8, dtype=np.float32)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * scale
    # A handful of float32 roundings of 6e-8 each.
    np.testing.assert_allclose(
        rms_norm(jnp.asarray(x), jnp.asarray(scale), 1e-6), expected, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("einsum", "shape"),
    [("ble,ef->blf", (8, 5)), ("ble,ehd->blhd", (8, 2, 3)), ("blhd,hde->ble", (2, 4, 5))],
)
def test_linear_gradients_equal_those_of_einsum(einsum, shape):
    x_shape = (3, 4, 2, 4) if einsum.startswith("blhd") else (3, 4, 8)
    x = jax.random.normal(jax.random.key(0), x_shape)
    kernel = jax.random.normal(jax.random.key(1), shape)

    def gradients(product):
        return jax.grad(lambda x, k: jnp.sum(jnp.sin(product(x, k))), argnums=(0, 1))(x, kernel)

    mine = gradients(lambda x, k: linear(einsum, x, k))
    for got, wanted in zip(mine, gradients(lambda x, k: jnp.einsum(einsum, x, k)), strict=True):
        # float32 sums of at most twelve numbers, in another order.
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_linear_sums_the_gradient_of_a_float32_kernel_in_float32():
    x = jnp.ones((1, 4096, 1), jnp.bfloat16)
    grad = jax.grad(lambda k: jnp.sum(linear("ble,ef->blf", x, k).astype(jnp.float32)))
    # In bfloat16 the sum of 4097 ones and more would stop at a multiple of 32.
    x = jnp.ones((1, 4097, 1), jnp.bfloat16)
    assert float(grad(jnp.ones((1, 1)))[0, 0]) == 4097.0


def test_dropout_keeps_the_mean_and_the_share_it_says():
    x = jnp.ones((200, 3, 500))
    dropped = dropout(x, 0.3, jax.random.key(0))
    kept = np.asarray(dropped != 0)
    # 100,000 draws: a standard deviation of 0.0015.
    assert abs(kept.mean() - 0.7) < 0.006
    np.testing.assert_allclose(np.asarray(dropped)[kept], 1 / 0.7, rtol=1e-6)


def test_dropout_has_one_mask_for_all_positions():
    kept = dropout(jnp.ones((2, 5, 64)), 0.5, jax.random.key(0)) != 0
    np.testing.assert_array_equal(kept, jnp.broadcast_to(kept[:, :1], kept.shape))

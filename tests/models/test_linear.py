import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.models.architectures import EncoderDecoder
from t5lite.models.linear import linear
from tests import small


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


@pytest.mark.proof
def test_a_whole_model_is_differentiable_in_forward_mode():
    config = small.config(remat="minimal", num_encoder_layers=1, num_decoder_layers=1)
    model = EncoderDecoder(config)
    batch, params = jax.tree.map(jnp.asarray, small.batch(1)), small.params(model)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)

    def loss(params):
        return jnp.mean(jnp.sin(model.apply({"params": params}, batch)))

    def along(tree):
        products = jax.tree.map(jnp.vdot, tree, direction)
        return sum(jax.tree.leaves(products))

    @jax.jit
    def derivatives(params):
        first = jax.jvp(loss, (params,), (direction,))[1], along(jax.grad(loss)(params))
        linearized = jax.linearize(loss, params)[1](direction)
        forward_over_reverse = along(jax.jvp(jax.grad(loss), (params,), (direction,))[1])
        reverse_over_reverse = along(jax.grad(lambda p: along(jax.grad(loss)(p)))(params))
        return (*first, linearized), (forward_over_reverse, reverse_over_reverse)

    for same in derivatives(params):
        # Sums over 8,000 products of float32 numbers, in different orders.
        np.testing.assert_allclose(same, same[0], rtol=1e-3)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 2)])
def test_linear_and_its_gradients_may_be_vectorised(axes):
    shapes = [(3, 4, 8), (8, 5)]
    for n, axis in enumerate(axes):
        if axis is not None:
            shapes[n] = (*shapes[n][:axis], 2, *shapes[n][axis:])
    x, kernel = (jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(shapes))

    def gradients(product):
        def total(x, kernel):
            return jnp.sum(jnp.sin(product(x, kernel)))

        def both_orders(x, kernel):
            inside = jax.vmap(jax.grad(total, argnums=(0, 1)), in_axes=axes)(x, kernel)
            mapped = jax.vmap(total, in_axes=axes)
            return inside, jax.grad(lambda *a: jnp.sum(mapped(*a)), argnums=(0, 1))(x, kernel)

        return jax.jit(both_orders)(x, kernel)

    jax.tree.map(
        # float32 sums of at most twelve numbers, in another order.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        gradients(lambda x, k: linear("ble,ef->blf", x, k)),
        gradients(lambda x, k: jnp.einsum("ble,ef->blf", x, k)),
    )

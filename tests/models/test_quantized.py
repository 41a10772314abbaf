import jax
import jax.numpy as jnp
import numpy as np

from t5lite.models.adapters import Axis, MapSite
from t5lite.models.linear import linear
from t5lite.models.quantized import dequantized, quantized, scaled_result

# A map of each of two experts.
SITE = MapSite(
    name="query",
    einsum="bxe,xehd->bhxd",
    stacked=(Axis("experts", 2),),
    inputs=(Axis("embed", 16),),
    outputs=(Axis("heads", 3), Axis("kv", 4)),
    kernel=None,
    parameter=print,
)
# float32, the same sums in another order.
ROUNDING = 1e-6


def test_values_are_the_nearest_multiples_of_the_scale_of_their_output(rng):
    # Of three layers.
    kernel = rng.normal(size=(3, 2, 16, 3, 4)) * rng.uniform(0.1, 10, (3, 2, 1, 3, 4))
    kernel = np.float32(kernel)
    kernel[1, 0, :, 2, 3] = 0.0
    values, scale = jax.jit(lambda k: quantized(SITE, k))(kernel)
    assert (values.dtype, values.shape, scale.shape) == (np.int8, kernel.shape, (3, 2, 3, 4))
    wanted = np.abs(np.float64(kernel)).max(axis=2) / 127
    wanted[1, 0, 2, 3] = 1.0
    np.testing.assert_allclose(scale, wanted, rtol=1e-6)
    error = np.abs(dequantized(SITE, values, scale) - np.float64(kernel))
    assert np.all(error <= wanted[:, :, None] / 2 * (1 + 1e-4))
    assert np.all(np.abs(np.float64(values)).max(axis=2)[scale != 1.0] == 127)


def test_a_map_of_int8_values_is_that_of_the_dequantized_kernel(rng):
    kernel = jnp.asarray(rng.normal(size=(2, 16, 3, 4)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(5, 2, 16)), jnp.float32)
    values, scale = quantized(SITE, kernel)
    whole = np.einsum(SITE.einsum, np.float64(x), np.float64(dequantized(SITE, values, scale)))
    got = scaled_result(SITE, linear(SITE.einsum, x, values), scale)
    np.testing.assert_allclose(got, whole, rtol=ROUNDING, atol=ROUNDING * np.abs(whole).max())

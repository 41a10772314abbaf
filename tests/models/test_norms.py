import jax.numpy as jnp
import numpy as np

from t5lite.models.norms import RMSNormPlusOne, rms_norm
from tests import small


def test_rms_norm_equals_float64():
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32) * 100
    scale = np.linspace(0.5, 2, 8, dtype=np.float32)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * scale
    # A handful of float32 roundings of 6e-8 each.
    np.testing.assert_allclose(
        rms_norm(jnp.asarray(x), jnp.asarray(scale), 1e-6), expected, rtol=1e-6
    )


def test_rms_plus_one_scales_by_one_plus_its_weight():
    norm, x = RMSNormPlusOne(small.config()), jnp.array([3.0, -3.0])
    result = norm.apply({"params": {"scale": jnp.array([0.5, 1.0])}}, x)
    np.testing.assert_allclose(result, [1.5, -2.0], rtol=1e-6)

import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.models.norms import RMSNormPlusOne, layer_norm, rms_norm
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


@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_norm_equals_float64(has_bias):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 5, 8)).astype(np.float32) * 100 + 7
    scale = np.linspace(0.5, 2, 8, dtype=np.float32)
    bias = rng.normal(size=8).astype(np.float32) if has_bias else None
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale
    got = layer_norm(
        jnp.asarray(x), jnp.asarray(scale), None if bias is None else jnp.asarray(bias), 1e-6
    )
    # The difference from the mean loses a bit or two more than the scale.
    np.testing.assert_allclose(got, expected + (bias if has_bias else 0), rtol=2e-6, atol=2e-6)


def test_rms_plus_one_scales_by_one_plus_its_weight():
    norm, x = RMSNormPlusOne(small.config()), jnp.array([3.0, -3.0])
    result = norm.apply({"params": {"scale": jnp.array([0.5, 1.0])}}, x)
    np.testing.assert_allclose(result, [1.5, -2.0], rtol=1e-6)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.models.adalora import AdaLoRA
from t5lite.models.adapters import MapWeights
from tests.models import single_map

# float32 against float64: sums of up to eight products of numbers around 1, some of them tripled.
TOLERANCE = 2e-5
ADAPTER = AdaLoRA(targets=(".*",), rank=3, alpha=2.0)


@pytest.mark.parametrize("shape", ["out", "biased", "experts"])
def test_a_map_with_adalora_is_the_map_with_the_changed_kernel(shape, rng):
    one = single_map.make(shape, ADAPTER)
    x, params = single_map.drawn(one, rng)
    inputs, outputs = single_map.sizes(one)

    def of(name, rows, columns):
        return single_map.matrices(one, params[name], inputs=rows, outputs=columns)

    down = of("lora_down", inputs, 3) * of("lora_values", 1, 3)
    kernel = of("kernel", inputs, outputs) + 2 / (3 + 1e-5) * down @ of("lora_up", 3, outputs)
    wanted = single_map.product(one, x, kernel, params.get("bias"))
    got = one.apply({"params": params}, x)
    np.testing.assert_allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE * np.abs(wanted).max())
    own = MapWeights(params["kernel"], params.get("bias"))
    merged = ADAPTER.merged(single_map.site(one, params), own, params)
    merged_kernel = np.asarray(merged.kernel).reshape(kernel.shape)
    limit = TOLERANCE * np.abs(kernel).max()
    np.testing.assert_allclose(merged_kernel, kernel, rtol=TOLERANCE, atol=limit)
    assert merged.bias is own.bias


def test_a_new_adalora_changes_nothing(seed):
    one = single_map.make("out", ADAPTER)
    x = jnp.ones((2, 3, 2, 4))
    boxes = one.init(jax.random.key(seed), x)["params"]
    params = {part: box.value for part, box in boxes.items()}
    base = single_map.make("out").apply({"params": {"kernel": params["kernel"]}}, x)
    np.testing.assert_array_equal(one.apply({"params": params}, x), base)
    assert 0.01 < np.std([*params["lora_down"].ravel(), *params["lora_up"].ravel()]) < 0.03


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "AdaLoRA.rank must be a whole number >= 1, got 0"),
        ({"alpha": 0.0}, "AdaLoRA.alpha must be over 0, got 0.0"),
        ({"dropout_rate": 1.0}, r"AdaLoRA.dropout_rate must be in \[0, 1\), got 1.0"),
    ],
)
def test_fields_out_of_range_are_rejected(fields, message):
    with pytest.raises(UserError, match=message):
        AdaLoRA(**fields)

import jax
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.models.adapted_maps import adapted_maps, check_mergeable
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.bottleneck import Bottleneck
from tests import small
from tests.models import single_map

# float32 against float64: sums of up to twelve products of numbers around 1, three times over.
TOLERANCE = 5e-5


@pytest.mark.parametrize("shape", ["out", "biased", "experts"])
def test_a_bottleneck_equals_its_definition(shape, rng):
    one = single_map.make(shape, Bottleneck(targets=(".*",), bottleneck_dim=3, activation="relu"))
    x, params = single_map.drawn(one, rng)
    inputs, outputs = single_map.sizes(one)

    def of(name, rows, columns):
        return single_map.matrices(one, params[name], inputs=rows, outputs=columns)

    kernel = of("kernel", inputs, outputs)
    y = single_map.product(one, x, kernel, params.get("bias"))
    rows = y.reshape(len(kernel), -1, outputs)
    hidden = rows @ of("bottleneck_down", outputs, 3) + of("bottleneck_down_bias", 1, 3)
    change = np.maximum(hidden, 0) @ of("bottleneck_up", 3, outputs)
    wanted = y + (change + of("bottleneck_up_bias", 1, outputs)).reshape(y.shape)
    got = one.apply({"params": params}, x)
    np.testing.assert_allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE * np.abs(wanted).max())


def test_a_new_bottleneck_changes_nothing(seed):
    one = single_map.make("out", Bottleneck(targets=(".*",)))
    x = jax.random.normal(jax.random.key(seed), (2, 3, 2, 4))
    boxes = one.init(jax.random.key(seed), x)["params"]
    params = {part: box.value for part, box in boxes.items()}
    assert np.abs(params["bottleneck_down"]).max() > 0
    base = single_map.make("out").apply({"params": {"kernel": params["kernel"]}}, x)
    np.testing.assert_array_equal(one.apply({"params": params}, x), base)


def test_a_bottleneck_cannot_be_merged():
    model = EncoderDecoder(small.config(adapters=(Bottleneck(targets=(".*mlp/wo",)),)))
    maps = adapted_maps(model)
    assert maps.keys() == {"encoder/layers/mlp/wo", "decoder/layers/mlp/wo"}
    with pytest.raises(UserError, match="of encoder/layers/mlp/wo cannot be merged, as it has no"):
        check_mergeable(maps["encoder/layers/mlp/wo"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bottleneck_dim": 0}, "Bottleneck.bottleneck_dim must be a whole number >= 1, got 0"),
        ({"activation": "geluu"}, "Bottleneck.activation is unknown: got 'geluu'.*gelu"),
        ({"targets": ("(",)}, "Bottleneck.targets must be regular expressions, got '\\('"),
    ],
)
def test_fields_out_of_range_are_rejected(fields, message):
    with pytest.raises(UserError, match=message):
        Bottleneck(**fields)

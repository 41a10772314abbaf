import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.models.architectures import EncoderDecoder, ModelApply
from t5lite.models.model import parameters
from t5lite.models.stack import window_pattern
from tests import small


def test_parameters_of_a_pattern_have_the_names_shapes_and_axes_of_a_uniform_stack():
    def described(**windows):
        config = small.config(num_encoder_layers=5, num_decoder_layers=4, **windows)
        boxes = parameters(EncoderDecoder(config)).items()
        return {name: (box.value.shape, box.names, box.initializer) for name, box in boxes}

    patterned = described(encoder_windows=(2, None), decoder_windows=(1, 2, None))
    assert patterned == described()


def test_new_parameters_of_a_pattern_differ_between_layers():
    config = small.config(num_decoder_layers=3, decoder_windows=(1, None))
    kernel = small.params(EncoderDecoder(config))["decoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert kernel.shape[0] == 3
    assert len(np.unique(kernel[:, 0, 0])) == 3
    # Truncated normal with variance 1 / 24.
    np.testing.assert_allclose(kernel.std(axis=(1, 2)), 24**-0.5, rtol=0.2)


@pytest.mark.proof
def test_windows_that_hide_nothing_change_no_sum_and_no_gradient():
    sizes = {"num_encoder_layers": 1, "num_decoder_layers": 3, "num_experts": 2, "remat": "minimal"}
    batch = jax.tree.map(jnp.asarray, small.batch(1))

    def sums_and_gradients(**windows):
        model = EncoderDecoder(small.config(capacity_factor=2.0, **sizes, **windows))

        def total(params):
            sums = CrossEntropy()(ModelApply(model), params, batch)
            return sums["loss"], sums

        params = small.params(EncoderDecoder(small.config(capacity_factor=2.0, **sizes)))
        return jax.jit(jax.grad(total, has_aux=True))(params)

    jax.tree.map(
        # The same operations in float32, fused differently.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        sums_and_gradients(decoder_windows=(99, None)),
        sums_and_gradients(),
    )


@pytest.mark.parametrize(
    ("windows", "layers", "period"),
    [((), 4, 1), ((), 0, 1), ((3, None), 1, 1), ((3, None, 3, None), 8, 2), ((3, 3, None), 8, 3)],
)
def test_the_period_of_a_pattern_is_the_shortest(windows, layers, period):
    pattern = window_pattern([window and (window, window) for window in windows], layers)
    assert pattern.period == period
    assert len(pattern.kinds) == layers

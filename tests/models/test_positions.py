import numpy as np
import pytest

from t5lite.models.config import T5Config
from t5lite.models.positions import rotary_speeds
from tests import small


def config_of(**changes) -> T5Config:
    return small.decoder_config(positions="rotary", **changes)


def test_linear_scaling_divides_all_speeds():
    speeds = rotary_speeds(config_of(rotary_base=100.0, rotary_scaling=("linear", 4.0)), 4)
    # 100^0 / 4 and 100^(-1/2) / 4.
    np.testing.assert_allclose(speeds, [0.25, 0.025], rtol=1e-6)


def test_llama3_scaling_keeps_fast_rotations_and_divides_slow_ones():
    numbers = (8.0, 1.0, 4.0, 2 * np.pi * 100)
    config = config_of(rotary_base=1e4, rotary_scaling=("llama3", *numbers))
    # Turns within the original length: 100 * speed. From 4 on a speed stays, up to 1 it is
    # divided by 8; between them, 2.5 turns are half way.
    speeds = rotary_speeds(config, 8)
    np.testing.assert_allclose(speeds, [1.0, 0.1, 0.01 / 8, 0.001 / 8], rtol=1e-6)
    half_way = config_of(rotary_base=(1 / 0.025) ** 2, rotary_scaling=("llama3", *numbers))
    expected = [1.0, 0.5 * 0.025 + 0.5 * 0.025 / 8]
    np.testing.assert_allclose(rotary_speeds(half_way, 4), expected, rtol=1e-6)


def test_layers_with_a_window_have_their_own_base_and_no_scaling():
    config = config_of(
        rotary_base=1e6,
        rotary_base_windowed=100.0,
        rotary_scaling=("linear", 8.0),
        decoder_windows=(4, None),
    )
    windowed = rotary_speeds(config.windowed_config((4, 4)), 4)
    full = rotary_speeds(config.windowed_config(None), 4)
    np.testing.assert_allclose(windowed, [1.0, 0.1], rtol=1e-6)
    np.testing.assert_allclose(full, [1 / 8, 1e-3 / 8], rtol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"decoder_windows": (4, None)}], ids=str)
def test_windows_alone_change_no_speed(changes):
    config = config_of(**changes)
    assert config.windowed_config((4, 4)) is config
    assert config.windowed_config(None) is config

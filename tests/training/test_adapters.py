import dataclasses

import jax
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.models.architectures import EncoderDecoder
from t5lite.training.program import train_program
from tests import small
from tests.models.low_rank import LowRank


def adapted(**choices):
    return EncoderDecoder(small.config(adapters=(LowRank(**choices),)))


@pytest.fixture(scope="module")
def tuned(text_file, data_dir, of_three_steps, tmp_path_factory):
    """Parameters of a base, and of a run that trains only its adapters, which starts from it."""
    source = of_three_steps[1] / "checkpoints" / "3"
    run = small.run(
        text_file,
        data_dir,
        tmp_path_factory.mktemp("tuned"),
        model=adapted(),
        total_steps=2,
        initial_checkpoint=str(source),
        restore_rules=[("fresh", ".*/lora_.*")],
        trainable=[".*/lora_.*"],
    )
    return by_name(of_three_steps[0].params), by_name(jax.device_get(small.train(run).params)), run


def test_only_adapters_move_and_the_base_stays(tuned):
    base, after, run = tuned
    program = train_program(run, small.mesh(run))
    fresh = by_name(jax.device_get(program.init(program.hyper).params))
    added = after.keys() - base.keys()
    assert added
    for name, value in after.items():
        if name in added:
            # In the first step only `up` has a gradient, as it starts at 0.
            assert np.any(value != fresh[name]), name
        else:
            np.testing.assert_array_equal(value, base[name], err_msg=name)


def test_another_adapter_than_the_runs_is_rejected(tuned):
    other = dataclasses.replace(tuned[2], model=adapted(scale=7.0))
    with pytest.raises(UserError, match="was trained with T5Config.adapters .*2.0.* got .*7.0"):
        small.train(other)

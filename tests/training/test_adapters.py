import dataclasses

import jax
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.lora import LoRA
from t5lite.training.restore import new_state
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small
from tests.models.low_rank import LowRank, Rescaled

# The two factors of a map from 16 inputs to 12 outputs, with the last of their sizes.
PARTS = (("down", 2), ("up", 12))


def adapted(**choices):
    return EncoderDecoder(small.config(adapters=(LowRank(**choices),)))


@pytest.mark.proof
def test_only_adapters_move_and_the_base_stays(tuned):
    base, after, run = tuned
    program = small.program_of(run)
    fresh = by_name(jax.device_get(program.init(program.hyper).params))
    added = after.keys() - base.keys()
    assert added
    for name, value in after.items():
        if name in added:
            # In the first step only `up` has a gradient, as it starts at 0.
            assert np.any(value != fresh[name]), name
        else:
            np.testing.assert_array_equal(value, base[name], err_msg=name)


@pytest.mark.proof
def test_another_adapter_than_the_runs_is_rejected(tuned):
    other = dataclasses.replace(tuned[2], model=adapted(scale=7.0))
    with pytest.raises(UserError, match="was trained with T5Config.adapters .*2.0.* got .*7.0"):
        small.train(other)


@pytest.mark.proof
def test_a_run_from_a_base_computes_first_values_from_its_kernels(
    make_run, of_three_steps, tmp_path
):
    adapter = LoRA(rank=2, decomposed=True, initialization="pissa")
    model = EncoderDecoder(small.config(adapters=(adapter,)))
    source = of_three_steps[1] / "checkpoints" / "3"
    run = make_run(tmp_path, model=model, initial_checkpoint=str(source))
    lines = []
    state = new_state(small.program_of(run), StoredCheckpoints(tmp_path), lines.append)
    base = by_name(of_three_steps[0].params)
    params = by_name(jax.device_get(state.params))
    name = "decoder/layers/self_attention/query"
    kernel = base[f"{name}/kernel"]
    np.testing.assert_array_equal(params[f"{name}/kernel"], kernel)
    norms = np.linalg.norm(np.float64(kernel), axis=1)
    np.testing.assert_allclose(params[f"{name}/lora_magnitude"], norms, rtol=1e-5)
    down, up = (params[f"{name}/lora_{part}"].reshape(2, -1, size) for part, size in PARTS)
    for layer in range(2):
        values = np.linalg.svd(np.float64(kernel[layer]).reshape(16, 12), compute_uv=False)
        product = adapter.scale * np.float64(down[layer]) @ up[layer]
        got = np.linalg.svd(product, compute_uv=False)
        np.testing.assert_allclose(got[:2], values[:2], rtol=1e-4)
    assert "30 parameters of adapters are new, the first is decoder/layers/encoder_" in lines[-1]


@pytest.mark.proof
def test_a_base_with_a_part_of_an_adapter_is_rejected(tuned, make_run, tmp_path):
    source = f"{tuned[2].model_dir}/checkpoints/2"
    model = EncoderDecoder(small.config(adapters=(LowRank(), Rescaled())))
    run = make_run(tmp_path, model=model, initial_checkpoint=source)
    with pytest.raises(UserError, match="does not contain .*/ia3, the source of .*; add .'fresh'"):
        new_state(small.program_of(run), StoredCheckpoints(tmp_path), print)

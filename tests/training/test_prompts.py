"""Runs that train a prompt alone."""

import jax
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.prompt_tuning import PromptTuning
from t5lite.training.restore import new_state
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small

NAME = "prompt/prompt_embedding"


def run_from(of_three_steps, make_run, folder, **changes):
    adapters = (PromptTuning(length=3, initial_text="ab"),)
    choices = {
        "model": EncoderDecoder(small.config(adapters=adapters)),
        "initial_checkpoint": str(of_three_steps[1] / "checkpoints" / "3"),
        "trainable": ("prompt/.*",),
        "total_steps": 2,
        "checkpoint_every_steps": 1,
    }
    return make_run(folder, **{**choices, **changes})


@pytest.mark.proof
def test_a_prompt_starts_from_a_text_trains_alone_and_resumes_to_the_bit(
    of_three_steps, make_run, tmp_path
):
    base = by_name(jax.device_get(of_three_steps[0].params))
    run = run_from(of_three_steps, make_run, tmp_path / "whole")
    program = small.program_of(run)
    state = new_state(program, StoredCheckpoints(tmp_path / "none"), lambda line: None)
    first = base["token_embedder/embedding"][[3 + ord(letter) for letter in "aba"]]
    np.testing.assert_array_equal(state.params["prompt"]["prompt_embedding"], first)
    whole = by_name(small.train(run))
    assert np.all(np.any(np.asarray(whole[f"params/{NAME}"]) != first, axis=1))
    for name, value in base.items():
        np.testing.assert_array_equal(whole[f"params/{name}"], value, err_msg=name)
    stopped = tmp_path / "stopped"
    small.train(run_from(of_three_steps, make_run, stopped, total_steps=1))
    resumed = by_name(small.train(run_from(of_three_steps, make_run, stopped)))
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_text_without_a_checkpoint_is_rejected(of_three_steps, make_run, tmp_path):
    with pytest.raises(UserError, match=r"PromptTuning.initial_text .* needs train.initial_check"):
        run_from(of_three_steps, make_run, tmp_path, initial_checkpoint=None)

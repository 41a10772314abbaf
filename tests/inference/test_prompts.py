import numpy as np
import pytest

from t5lite.inference.predict import Prompt, _batch_of
from t5lite.inference.score import _layout_of
from t5lite.models.adapted_maps import with_adapters
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.prompt_tuning import PromptTuning
from tests import small

ADAPTERS = (PromptTuning(length=2),)
INPUTS = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]


def test_inputs_of_an_encoder_have_room_for_a_prompt():
    model = with_adapters(EncoderDecoder(small.config()), ADAPTERS)
    prompts = [Prompt(inputs=inputs) for inputs in INPUTS]
    batch = _batch_of(model, prompts, 3, 16, 8)
    assert batch["encoder_input_tokens"][:, :6].tolist() == [
        [0, 0, 5, 6, 7, 0],
        [0, 0, 8, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert batch["encoder_segment_ids"].sum(axis=1).tolist() == [5, 3, 0]


@pytest.mark.parametrize("prefix_attention", [False, True])
def test_inputs_of_a_decoder_have_room_for_a_prompt_before_the_start_token(prefix_attention):
    config = small.decoder_config(start_token=2, prefix_attention=prefix_attention)
    model = with_adapters(DecoderOnly(config), ADAPTERS)
    prompts = [Prompt(inputs=inputs, prefix=np.array([9], np.int32)) for inputs in INPUTS]
    batch = _batch_of(model, prompts, 2, 16, 8)
    assert batch["decoder_input_tokens"][:, -7:].tolist() == [
        [0, 0, 2, 5, 6, 7, 9],
        [0, 0, 0, 0, 2, 8, 9],
    ]
    assert batch["decoder_segment_ids"].sum(axis=1).tolist() == [7, 5]
    assert batch["decoder_segment_ids"][:, -1].tolist() == [1, 1]
    if prefix_attention:
        sees_all = batch["decoder_causal_attention"]
        assert sees_all[:, -7:].tolist() == [[1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 0]]


def test_scored_rows_have_room_for_a_prompt():
    encoder_decoder = with_adapters(EncoderDecoder(small.config()), ADAPTERS)
    lengths = _layout_of(encoder_decoder, [(4, 3)], 16, 8).lengths
    bare = _layout_of(EncoderDecoder(small.config()), [(4, 3)], 16, 8).lengths
    more = {name: length - bare[name] for name, length in lengths.items()}
    assert {name for name, count in more.items() if count} == {
        "encoder_input_tokens",
        "encoder_segment_ids",
    }
    assert set(more.values()) == {0, 2}

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.batching.features import LAYOUTS, batch_of, make_layout
from t5lite.inference.decoding import Decoding
from t5lite.inference.sampling import sample
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from t5lite.models.classifier import Classes
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from t5lite.models.flops import forward_flops
from t5lite.models.model import GenerativeModel, Model, generative
from tests import small

ENCODER_CONFIG = small.config(num_decoder_layers=0)
MODELS = [
    EncoderDecoder(small.config()),
    DecoderOnly(small.decoder_config()),
    EncoderOnly(ENCODER_CONFIG),
    EncoderOnly(ENCODER_CONFIG, Classes(count=3, per_token=True)),
    EncoderDecoderClassifier(small.config(), Classes(count=3, per_token=False, pooling="last")),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_models_satisfy_the_protocol_that_their_answers_promise(model):
    assert isinstance(model, Model)
    assert isinstance(model, GenerativeModel) == model.has_decoder
    assert model.layout in LAYOUTS
    stacks = {name.partition("_")[0] for name in _layout(model).lengths}
    has_stacks = {"encoder": model.has_encoder, "decoder": model.has_decoder}
    assert stacks == {stack for stack, has in has_stacks.items() if has}


def _layout(model):
    return make_layout(
        model.layout, inputs_length=8, targets_length=6, total_length=14, has_inputs=True
    )


def test_an_encoder_alone_generates_nothing():
    with pytest.raises(UserError, match=r"^infer needs a model with a decoder, got EncoderOnly"):
        generative(MODELS[2], "infer")


def test_training_and_decoding_begin_with_the_start_token_of_the_model():
    model = EncoderDecoder(small.config(start_token=9, num_decoder_layers=1))
    layout = make_layout(
        model.layout,
        inputs_length=8,
        targets_length=6,
        total_length=14,
        has_inputs=True,
        start_token=model.config.start_token,
    )
    example = {"inputs": np.array([5, 6, 1]), "targets": np.array([7, 1])}
    batch = batch_of(layout, [[example, example]])
    assert batch["decoder_input_tokens"][0].tolist() == [9, 7, 9, 7, 0, 0]

    params = small.params(model)
    given = small.batch(1)
    first = jnp.full((4, 1), 9)
    forced = {**given, "decoder_input_tokens": first, "decoder_segment_ids": jnp.ones_like(first)}
    expected = small.logits(model, params, forced)[:, 0].argmax(-1)
    inputs = {name: jnp.asarray(x) for name, x in given.items() if name.startswith("encoder")}
    keys = jax.random.split(jax.random.key(0), 4)
    decode = functools.partial(sample, model, length=1, stop_ids=(1,), keys=keys)
    decoded = jax.jit(lambda p, b: decode(p, b, Decoding()).tokens)(params, inputs)
    np.testing.assert_array_equal(decoded[:, 0, 0], expected)


def test_flops_count_the_keys_in_a_window():
    lengths = {"encoder_input_tokens": 100, "decoder_input_tokens": 50}
    full = forward_flops(EncoderDecoder(small.config()), lengths)
    config = small.config(encoder_windows=((3, 4), None), decoder_windows=(5,))
    windowed = forward_flops(EncoderDecoder(config), lengths)
    per_pair = 4 * config.num_heads * config.head_dim
    # One encoder layer sees 8 of 100 keys, both decoder layers 6 of 50.
    assert full - windowed == per_pair * (100 * (100 - 8) + 2 * 50 * (50 - 6))

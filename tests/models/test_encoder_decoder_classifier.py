"""Classification by an encoder-decoder whose decoder reads the inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.classifier import Classes
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from tests import small

# Float32 sums in another order.
TOLERANCE = 1e-5
CLASSES = Classes(count=3, per_token=False, pooling="last", has_dense=True)
MODEL = EncoderDecoderClassifier(small.config(start_token=5), CLASSES)


@pytest.fixture(scope="module")
def params():
    return small.params(MODEL)


def batch_of(rows):
    """Rows of examples as a batch of an encoder."""
    length = max(sum(map(len, row)) for row in rows) + 2
    tokens, segments = (np.zeros((len(rows), length), np.int32) for _ in range(2))
    for row, examples in enumerate(rows):
        at = 0
        for number, example in enumerate(examples, start=1):
            tokens[row, at : at + len(example)] = example
            segments[row, at : at + len(example)] = number
            at += len(example)
    return {"encoder_input_tokens": jnp.array(tokens), "encoder_segment_ids": jnp.array(segments)}


def examples_of(seed):
    rng = np.random.default_rng(seed)
    return [[*rng.integers(10, 380, length), 1] for length in (7, 2, 4)]


def test_class_is_that_of_the_decoder_at_the_last_token(params, seed):
    examples = examples_of(seed)
    batch = batch_of([[example] for example in examples])
    logits = np.asarray(small.logits(MODEL, params, batch))
    decoder_inputs = np.zeros(batch["encoder_input_tokens"].shape, np.int32)
    for row, example in enumerate(examples):
        decoder_inputs[row, : len(example)] = [5, *example[:-1]]
    rest = {name: part for name, part in params.items() if name != "classifier"}
    whole = {
        **batch,
        "decoder_input_tokens": jnp.array(decoder_inputs),
        "decoder_segment_ids": batch["encoder_segment_ids"],
    }
    hidden = EncoderDecoder(MODEL.config).apply({"params": rest}, whole, method="hidden")
    head = jax.tree.map(np.asarray, params["classifier"])
    for row, example in enumerate(examples):
        last = np.asarray(hidden)[row, len(example) - 1]
        dense = np.tanh(last @ head["dense"]["kernel"] + head["dense"]["bias"])
        expected = dense @ head["kernel"] + head["bias"]
        for at in range(len(example)):
            np.testing.assert_allclose(logits[row, at], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_packed_examples_have_the_classes_of_separate_ones(params, seed):
    examples = examples_of(seed)
    packed = small.logits(MODEL, params, batch_of([examples]))
    separate = small.logits(MODEL, params, batch_of([[example] for example in examples]))
    at = 0
    for row, example in enumerate(examples):
        np.testing.assert_allclose(packed[0, at], separate[row, 0], rtol=1e-4, atol=TOLERANCE)
        at += len(example)


def test_tags_depend_on_the_tokens_before_through_the_decoder():
    classes = Classes(count=3, per_token=True)
    model = EncoderDecoderClassifier(small.config(), classes)
    params = small.params(model)
    logits = small.logits(model, params, batch_of([examples_of(0)[:1]]))
    assert logits.shape == (1, 10, 3)
    assert not np.array_equal(logits[0, 0], logits[0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "middle"}, "Classes.pooling is unknown: got 'middle'"),
        ({"pooling": "last", "per_token": True}, "Classes.pooling must be 'mean', its default"),
        ({"names": ["a"]}, r"Classes.names must be empty or 3 names \(Classes.count\), got \('a',"),
    ],
)
def test_classes_that_contradict_each_other_are_rejected(arguments, message):
    with pytest.raises(UserError, match=message):
        Classes(**{"count": 3, "per_token": False, **arguments})

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.cli.class_inference import check_class_flags, class_objective
from t5lite.core.errors import UserError
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.inference.answers import ClassRequestEncoder, make_class_answer
from t5lite.inference.class_predictions import make_predict_classes
from t5lite.inference.requests import Request
from t5lite.models.architectures import EncoderOnly
from t5lite.models.classifier import Classes
from t5lite.objectives.classes import Classification, Tagging
from t5lite.parallel.mesh import Mesh
from tests import small

NAMES = ("O", "B-x", "I-x")
BYTES = ByteVocabulary()
TAG = Tagging(inputs_length=20, classes=NAMES)
# Of sums of a few float32 logits.
ROUNDING = 1e-4


def test_words_have_their_most_likely_classes_whatever_the_batch():
    classes = Classes(count=3, per_token=True, names=NAMES)
    model = EncoderOnly(small.config(num_decoder_layers=0, tied_logits=True), classes)
    params = small.params(model)
    mesh = Mesh().make(jax.devices()[:1])
    predict = make_predict_classes(model, mesh, inputs_length=20, batch_size=2)
    encoder = ClassRequestEncoder(TAG, BYTES)
    texts = ["a bc d", "one two three four", "x"]
    requests = [Request(given={}, inputs=text) for text in texts]
    found = make_class_answer(predict, encoder)(params, requests, 0, lambda done: None)
    for text, result in zip(texts, found, strict=True):
        ids = np.append(BYTES.encode(text), 1)
        row = jnp.asarray(np.pad(ids, (0, 20 - len(ids)))[None], jnp.int32)
        segments = (jnp.arange(20) < len(ids))[None].astype(jnp.int32)
        batch = {"encoder_input_tokens": row, "encoder_segment_ids": segments}
        log_probs = jax.nn.log_softmax(small.logits(model, params, batch))[0]
        starts = [at for at in range(len(text)) if at == 0 or text[at - 1] == " "]
        wanted = [NAMES[int(jnp.argmax(log_probs[at]))] for at in starts]
        assert result["prediction"].split() == wanted
        score = sum(float(jnp.max(log_probs[at])) for at in starts)
        assert result["score"] == pytest.approx(score, abs=ROUNDING)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_class_flags("score", []), "--mode=score needs a model with a decoder"),
        (lambda: check_class_flags("predict", ["Decoding.top_k=3"]), "Decoding.top_k has no eff"),
        (lambda: check_class_flags("predict", ["infer.num_best=3"]), "infer.num_best has no eff"),
        (
            lambda: class_objective(Classes(count=3, per_token=True), [], 9),
            "names of the 3 classes, got 0 lists",
        ),
        (
            lambda: ClassRequestEncoder(TAG, BYTES).is_cut(
                Request(given={}, inputs="a", prefix="b")
            ),
            "prefix must be absent with a model of classes, got 'b'",
        ),
    ],
)
def test_what_has_no_effect_on_classes_is_rejected(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_the_objective_follows_the_run_or_the_names_of_the_classes():
    named = Classes(count=3, per_token=False, names=NAMES)
    assert class_objective(named, [], 9) == Classification(inputs_length=9, classes=NAMES)
    assert class_objective(named, [TAG], 9) == Tagging(inputs_length=9, classes=NAMES)

import math

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.inference.answers import RequestEncoder, make_predict_answer, make_score_answer
from t5lite.inference.beam_search import NEVER
from t5lite.inference.decoding import Decoding
from t5lite.inference.predict import Target, _targets_of
from t5lite.inference.requests import Inference, Request
from t5lite.inference.score import Likelihood

VOCABULARY = ByteVocabulary()
ENCODER = RequestEncoder(VOCABULARY, 16, 16, end_inputs=True)
REQUEST = Request(given={"inputs": "a"}, inputs="a", targets="b")


def target(text, score):
    return Target(VOCABULARY.encode(text), score)


def answers(targets, *, num_best=1, distinct=True):
    answer = make_predict_answer(
        lambda params, prompts, on_done: [targets],
        ENCODER,
        VOCABULARY,
        num_best=num_best,
        distinct=distinct,
    )
    (result,) = answer(None, [REQUEST], 6, lambda done: None)
    return result


def test_best_targets_are_distinct_by_text_and_fewer_if_there_are_fewer():
    # The end of sequence decodes to nothing: two token sequences have the same text.
    doubled = Target(np.append(VOCABULARY.encode("x"), 1).astype(np.int32), -2.0)
    targets = [target("x", -1.0), doubled, target("y", -3.0), target("z", -4.0)]
    result = answers(targets, num_best=4)
    assert result["predictions"] == ["x", "y", "z"]
    assert result["scores"] == [-1.0, -3.0, -4.0]
    assert answers(targets, num_best=2)["predictions"] == ["x", "y"]
    assert answers(targets, num_best=4, distinct=False)["predictions"] == ["x", "x", "y", "z"]


def test_beams_are_distinct_by_default_and_samples_are_not():
    beams = Inference(decoding=Decoding(num_beams=4), num_best=4)
    samples = Inference(decoding=Decoding(num_samples=4, temperature=1.0), num_best=4)
    assert (beams.is_distinct, samples.is_distinct) == (True, False)
    assert Inference(distinct=False).is_distinct is False


def test_empty_slots_of_beam_search_are_no_targets():
    tokens = np.array([[100, 1, 0], [0, 0, 0], [101, 102, 1]], np.int32)
    scores = np.array([-0.5, NEVER, -2.0], np.float32)
    found = _targets_of(tokens, scores, stops=(1,))
    assert [(ids.tolist(), score) for ids, score in found] == [([100], -0.5), ([101, 102], -2.0)]


@pytest.mark.parametrize("score", [math.nan, NEVER])
def test_without_a_finite_score_there_is_one_target_with_the_score_nan(score):
    tokens = np.zeros((2, 3), np.int32)
    ((ids, found),) = _targets_of(tokens, np.full(2, score, np.float32), stops=(1,))
    assert ids.size == 0
    assert math.isnan(found)


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_score_that_json_cannot_hold_is_an_error_that_names_the_object(score):
    with pytest.raises(UserError, match="object 7 has the score .*: the checkpoint's parameters"):
        answers([target("", score)])
    answer = make_score_answer(lambda *_: [Likelihood(score, 2)], ENCODER)
    with pytest.raises(UserError, match="object 7 has the score "):
        answer(None, [REQUEST], 6, lambda done: None)

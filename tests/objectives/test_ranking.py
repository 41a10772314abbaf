import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.examples import Found
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.inference.answers import ClassRequestEncoder, make_class_answer
from t5lite.inference.requests import Request
from t5lite.objectives.ranking import Ranking

BYTES = ByteVocabulary()
SEPARATOR = "<extra_id_0>"


def joined(query, *candidates):
    return BYTES.encode(SEPARATOR.join([query, *candidates]))


def example(relevance, *texts, **fields):
    objective = Ranking(**{"pair_length": 9, **fields})
    made = objective.from_pair(joined(*texts), BYTES.encode(relevance), BYTES)
    texts = [BYTES.decode(made["inputs"][made["candidates"] == n]) for n in (1, 2, 3)]
    return made, [text for text in texts if text]


def test_candidates_are_cut_before_a_short_query_and_a_long_query_to_half():
    _, texts = example("1 0", "ask", "yes", "no nono")
    assert texts == ["ask<extra_id_0>yes", "ask<extra_id_0>no n"]
    _, texts = example("1 0", "question", "y", "no nono")
    assert texts == ["questi<extra_id_0>y", "que<extra_id_0>no n"]
    objective = Ranking(pair_length=9)
    cut = [objective.is_cut(joined("ask", *each), BYTES) for each in (["yes1", "n"], ["yes12"])]
    assert cut == [False, True]


def test_losses_compare_the_first_candidates_and_the_most_relevant_one():
    made, texts = example("0 0 1 2", "q", "a", "b", "c", "d", num_candidates=3)
    assert texts == ["q<extra_id_0>a", "q<extra_id_0>b", "q<extra_id_0>d"]
    assert made["targets"][made["target_weights"] > 0].tolist() == [0, 0, 2]
    made, texts = example("0 2 1 2", "q", "a", "b", "c", "d", num_candidates=3)
    assert texts[2] == "q<extra_id_0>c"
    assert len(made["inputs"]) <= Ranking(pair_length=9, num_candidates=3).inputs_length


def test_requests_get_all_scores_and_the_order_of_the_candidates():
    encoder = ClassRequestEncoder(Ranking(pair_length=9, num_candidates=1), BYTES)
    requests = [
        Request(given={}, inputs=SEPARATOR.join(texts)) for texts in ("qabc", ["q", "d"], "qee")
    ]
    scores = iter([0.5, 2.0, -1.0, 3.0, 4.0, 4.0])
    done = []

    def predict(params, examples, on_done):
        on_done(len(examples))
        return [Found(np.zeros(len(e["inputs"]), np.int32), (next(scores),)) for e in examples]

    found = make_class_answer(predict, encoder)(None, requests, 0, done.append)
    assert found == [
        {"prediction": "1 0 2", "score": 2.0, "scores": [0.5, 2.0, -1.0]},
        {"prediction": "0", "score": 3.0, "scores": [3.0]},
        {"prediction": "1 0", "score": 4.0, "scores": [4.0, 4.0]},
    ]
    assert done == [3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: example("1", "no separator"), "separator must be before every candidate, got no"),
        (lambda: example("1 0 1", "q", "a", "b"), "relevance of each candidate, got 3 for 2 cand"),
        (lambda: example("1 0.5", "q", "a", "b"), "whole numbers from 0 .* got '0.5'"),
        (lambda: Ranking(pair_length=4), "Ranking.pair_length must be at least 5 tokens"),
        (lambda: Ranking(pair_length=9, num_candidates=0), "num_candidates must be a whole number"),
        (
            lambda: Ranking(pair_length=1 << 19, num_candidates=3),
            "num_candidates must be at most 2, for rows of 1,048,576 tokens, got 3",
        ),
        (
            lambda: Ranking(pair_length=9, separator="[SEP]").check(BYTES),
            "separator must be one token of the vocabulary, which has 5 for it",
        ),
    ],
)
def test_wrong_rankings_are_rejected(call, message):
    with pytest.raises(UserError, match=message):
        call()

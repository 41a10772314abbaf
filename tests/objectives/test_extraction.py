import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.examples import SPAN_END, SPAN_START
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.objectives.extraction import Extraction

BYTES = ByteVocabulary()


def example(inputs, answer, vocabulary=BYTES, **fields):
    objective = Extraction(**{"inputs_length": 80, **fields})
    made = objective.from_pair(vocabulary.encode(inputs), vocabulary.encode(answer), vocabulary)
    return objective, made


@pytest.mark.parametrize("answer", ["cat", "a cat sat", "Café größer", "mat.", "é"])
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_the_target_is_the_answer_in_the_context(kind, answer, sentencepiece_vocabulary):
    vocabulary = BYTES if kind == "bytes" else sentencepiece_vocabulary
    context = "The concatenation: a cat sat, Café größer, on é mat."
    if kind == "sentencepiece" and vocabulary.decode(vocabulary.encode(answer)) != answer:
        pytest.skip("the vocabulary does not know a character")
    objective, made = example(f"What is a cat?<extra_id_0>{context}", answer, vocabulary)
    assert answer in objective.prediction(made, made["targets"], vocabulary)
    # As a word of its own, and within the context.
    first = int(np.flatnonzero(made["targets"] & SPAN_START)[0])
    assert "cat" not in answer or "concatenation:" in vocabulary.decode(made["inputs"][:first])
    assert (made["target_weights"][first], made["token_types"][first]) == (1, 1)


def test_answers_that_are_absent_truncated_or_empty():
    _, made = example("q<extra_id_0>one two", "three")
    assert not made["targets"].any()
    for answer in ("", "two"):
        _, made = example("q<extra_id_0>one two", answer, inputs_length=8)
        assert made["targets"].tolist() == [SPAN_START + SPAN_END] + [0] * 7
        assert made["target_weights"].tolist() == [1, 0, 1, 1, 1, 1, 1, 0]
        assert made["token_types"].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: example("no separator", "x"), "must be in every input, got none of '<extra_id_0>"),
        (
            lambda: Extraction(inputs_length=9, separator="[SEP]").check(BYTES),
            "separator must be one token of the vocabulary, which has 5 for it, got '.SEP.'",
        ),
        (lambda: Extraction(inputs_length=3), "Extraction.inputs_length must be"),
    ],
)
def test_wrong_extractions_are_rejected(call, message):
    with pytest.raises(UserError, match=message):
        call()

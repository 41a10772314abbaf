import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.objectives.classes import Classification, Tagging

BYTES = ByteVocabulary()


def example(objective, inputs, targets, vocabulary=BYTES):
    return objective.from_pair(vocabulary.encode(inputs), vocabulary.encode(targets), vocabulary)


def test_a_long_input_is_truncated_and_keeps_its_class():
    made = example(Classification(inputs_length=4, classes=["a", "b"]), "xyzuvw", "b")
    assert BYTES.decode(made["inputs"]) == "xyz"
    assert made["inputs"].tolist()[-1] == 1
    assert (made["targets"].tolist(), made["target_weights"].tolist()) == (
        [1, 0, 0, 0],
        [1, 0, 0, 0],
    )


def test_a_word_is_tagged_at_its_first_token_and_truncated_words_are_not():
    objective = Tagging(inputs_length=7, classes=["O", "PER", "LOC"])
    made = example(objective, "  ab  c\nde f", "PER O LOC LOC")
    assert BYTES.decode(made["inputs"]) == "  ab  "
    assert made["target_weights"].tolist() == [0, 0, 1, 0, 0, 0, 0]
    made = example(
        Tagging(inputs_length=20, classes=["O", "PER", "LOC"]), "ab c\nde f", "PER O LOC LOC"
    )
    assert np.flatnonzero(made["target_weights"]).tolist() == [0, 3, 5, 8]
    assert made["targets"][[0, 3, 5, 8]].tolist() == [1, 0, 2, 2]


def test_words_of_sentencepiece_are_tagged(sentencepiece_vocabulary):
    text = "The language reference describes objects"
    objective = Tagging(inputs_length=60, classes=["x", "noun"])
    made = example(objective, text, "x noun noun x noun", sentencepiece_vocabulary)
    positions = np.flatnonzero(made["target_weights"])
    assert made["targets"][positions].tolist() == [0, 1, 1, 0, 1]
    pieces = np.split(made["inputs"][:-1], positions[1:])
    words = [sentencepiece_vocabulary.decode(piece).strip() for piece in pieces]
    assert words == text.split()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Classification(inputs_length=1, classes=["a", "b"]),
            "at least 2 tokens .*, got 1",
        ),
        (
            lambda: Classification(inputs_length=9, classes=["a"]),
            r"two or more different names, got \('a',\)",
        ),
        (lambda: Classification(inputs_length=9, classes=[0, 1]), "must be strings, .*, got 0"),
        (lambda: Tagging(inputs_length=9, classes=["a", "a"]), "two or more different names"),
        (lambda: Tagging(inputs_length=9, classes=["a b", "c"]), "names without spaces, got 'a b'"),
        (
            lambda: example(
                Classification(inputs_length=9, classes=["news", "sport"]), "x", "sports"
            ),
            "Classification.classes must hold every target, got 'sports'; did you mean 'sport'",
        ),
        (
            lambda: example(Tagging(inputs_length=9, classes=["O", "B"]), "one two", "O X"),
            "Tagging.classes must hold every target, got 'X'; known: B, O",
        ),
        (
            lambda: example(Tagging(inputs_length=9, classes=["O", "B"]), "one two", "O"),
            "one class per word, got 1 for 2 words: 'one two'",
        ),
    ],
)
def test_wrong_classes_are_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()

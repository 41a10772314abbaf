import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.examples import SPAN_END, SPAN_START, Found
from t5lite.data.batching.features import EncoderLayout, batch_of
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.inference.class_predictions import _span
from t5lite.objectives.extraction import Extraction
from tests.losses.fixed import Fixed

BYTES = ByteVocabulary()
# Of log-probabilities in float32.
ROUNDING = 1e-4
CONTEXT = "a cat, a dog, a cat and a cow"


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


def windows(answer, **fields):
    """The contexts and the answers of the windows of a question."""
    objective = Extraction(**{"inputs_length": 16, "stride": 6, **fields})
    inputs = BYTES.encode(f"q<extra_id_0>{CONTEXT}")
    made = objective.examples_of_pair(inputs, BYTES.encode(answer), BYTES)
    texts = [BYTES.decode(each["inputs"]).removeprefix("q<extra_id_0>") for each in made]
    return texts, [objective.prediction(each, each["targets"], BYTES) for each in made], made


def test_each_window_has_the_answer_that_is_whole_in_it():
    texts, answers, made = windows("a cow")
    assert texts == [CONTEXT[start : start + 13] for start in (0, 6, 12, 18)]
    assert answers == ["", "", "", "a cow"]
    assert [int(each["targets"][0]) for each in made] == [SPAN_START + SPAN_END] * 3 + [0]
    # A window that begins with the answer, and one that ends within it.
    assert windows("a dog, a", stride=7)[1] == ["", "a dog, a", "", ""]
    assert not any(each["targets"].any() for each in windows("a hen")[2])
    # No token is skipped, however long the stride; a long question leaves half of the room.
    assert "".join(windows("", stride=15)[0]) == CONTEXT
    objective = Extraction(inputs_length=16, stride=15)
    inputs = BYTES.encode(f"questions<extra_id_0>{CONTEXT}")
    parts = objective.parts(inputs, BYTES)
    assert BYTES.decode(parts[1]["inputs"]) == f"questio<extra_id_0>{CONTEXT[7:14]}"
    assert objective.is_cut(inputs, BYTES)
    assert not objective.is_cut(BYTES.encode(f"q<extra_id_0>{CONTEXT}"), BYTES)


@pytest.mark.parametrize("before", ["", "a cat, a dog, ", "A CAT a dog: "])
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_the_annotated_occurrence_is_learned(kind, before, sentencepiece_vocabulary):
    vocabulary = BYTES if kind == "bytes" else sentencepiece_vocabulary
    target = f"a cat<extra_id_0>{before}"
    objective, made = example(f"q<extra_id_0>{CONTEXT}", target, vocabulary)
    assert "a cat" in objective.prediction(made, made["targets"], vocabulary)
    first = int(np.flatnonzero(made["targets"] & SPAN_START)[0])
    assert ("dog" in vocabulary.decode(made["inputs"][:first])) == bool(before)
    assert objective.answer_of(target) == "a cat"


@pytest.mark.parametrize("threshold", [-1e9, 0.0, 1e9])
def test_the_best_span_of_all_windows_wins_against_no_answer(threshold, rng):
    objective = Extraction(inputs_length=16, stride=6, span_length=4, no_answer_threshold=threshold)
    parts = objective.parts(BYTES.encode(f"q<extra_id_0>{CONTEXT}"), BYTES)
    batch = batch_of(EncoderLayout(16), [[part] for part in parts])
    logits = rng.normal(size=(len(parts), 16, 2)).astype(np.float32) * 4

    def decide(logits):
        given = jax.tree.map(jnp.asarray, batch)
        return _span(Fixed(), {"logits": logits}, given, longest=objective.span_length)

    numbers, scores = jax.jit(decide)(jnp.asarray(logits))
    found = [
        Found(np.asarray(numbers[row, : len(part["inputs"])]), tuple(scores[row].tolist()))
        for row, part in enumerate(parts)
    ]
    made = objective.answer(parts, found, BYTES)
    exact = logits.astype(np.float64)
    spans, nones = {}, {}
    for row, part in enumerate(parts):
        at = np.flatnonzero(part["target_weights"])
        total = np.log(np.exp(exact[row, at]).sum(0)).sum()
        nones[row] = (exact[row, 0].sum(), exact[row, 0].sum() - total)
        for first in at[1:]:
            for last in range(first, min(first + 4, at[-1] + 1)):
                logit = exact[row, first, 0] + exact[row, last, 1]
                text = BYTES.decode(part["inputs"][first : last + 1]).strip()
                spans[logit] = (text, logit - total)
    best = max(spans)
    none, score = min(nones.values())
    wanted = ("", score) if none - best > threshold else spans[best]
    assert made.text == wanted[0]
    assert made.score == pytest.approx(wanted[1], abs=ROUNDING)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Extraction(inputs_length=9, stride=9), r"stride must be under .*\(9\), or None"),
        (lambda: Extraction(inputs_length=9, stride=0), "stride must be at least 1 token"),
        (
            lambda: Extraction(inputs_length=9, no_answer_threshold=float("nan")),
            "no_answer_threshold must be finite",
        ),
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

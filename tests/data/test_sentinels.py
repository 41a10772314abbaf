"""Sentinels in text: one rule for tasks, requests, prefixes, choices and references."""

import json

import pytest

from t5lite.core.errors import UserError
from t5lite.data.questions import questions
from t5lite.data.sources.file_source import FileSource
from t5lite.data.task import Task
from t5lite.data.text.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    vocabulary_from_description,
)
from t5lite.inference.answers import encode
from t5lite.objectives.supervised import Supervised

BYTES = ByteVocabulary()
INPUTS = "the <extra_id_0> sat 1"
TARGETS = "<extra_id_0> cat <extra_id_1>"


def task_of(tmp_path, vocabulary=BYTES, **choices):
    record = {"inputs": INPUTS, "targets": TARGETS}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    return Task(
        source=FileSource(
            files={"train": "a.jsonl"},
            fields=("inputs", "targets"),
            folder=str(tmp_path),
            data_dir=str(tmp_path / "tfds"),
        ),
        vocabulary=vocabulary,
        objective=Supervised(inputs_length=32, targets_length=16),
        inputs="{inputs}",
        targets="{targets}",
        **choices,
    )


def test_sentinels_in_text_are_sentinels_of_the_vocabulary():
    ids = BYTES.encode(INPUTS)
    # "the ", the sentinel and " sat 1"; spaces stay.
    assert len(ids) == 4 + 1 + 6
    assert ids[4] == BYTES.sentinel(0)
    assert BYTES.decode(ids) == INPUTS


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_tasks_and_requests_encode_alike(kind, tmp_path, sentencepiece_vocabulary):
    vocabulary = BYTES if kind == "bytes" else sentencepiece_vocabulary
    inputs, targets = task_of(tmp_path, vocabulary).tokens("train")[0]
    assert inputs.tolist() == encode(INPUTS, vocabulary).tolist()
    assert targets.tolist() == encode(TARGETS, vocabulary).tolist()
    assert vocabulary.sentinel(0) in inputs
    assert [vocabulary.sentinel(1), vocabulary.sentinel(0)] == sorted(
        i for i in targets.tolist() if i >= vocabulary.text_ids.stop
    )


def test_choices_are_encoded_with_sentinels(tmp_path):
    task = task_of(tmp_path, choices=["<extra_id_0> a", "b"], metrics=["exact_match"])
    (question,) = questions(task, "train")
    ids = [example["targets"].tolist() for _, example in question.choices]
    assert ids[0] == [BYTES.sentinel(0), *BYTES.encode(" a"), BYTES.eos_id]
    assert question.answers == [TARGETS]


@pytest.mark.parametrize(
    "text", ["<extra_id_00>", "<extra_id_125>", "<extra_id_>", "<extra_id_\u0660>"]
)
def test_other_texts_are_no_sentinels(text):
    assert BYTES.encode(text).tolist() == BYTES.encode_plain(text).tolist()


def test_a_request_may_not_name_a_missing_sentinel():
    with pytest.raises(UserError, match="<extra_id_125> must be one of the vocabulary's 125 sent"):
        encode("a <extra_id_125>", BYTES)


def test_literal_text_is_a_choice_of_the_vocabulary(tmp_path):
    literal = ByteVocabulary(parse_sentinels=False)
    inputs, _ = task_of(tmp_path, literal).tokens("train")[0]
    assert len(inputs) == 22
    assert encode(f"{INPUTS}<extra_id_999>", literal).tolist()[:22] == inputs.tolist()
    assert literal.decode(inputs) == INPUTS
    assert literal.fingerprint == "ByteVocabulary(num_sentinels=125, parse_sentinels=False)"
    assert vocabulary_from_description(literal.describe(), tmp_path) == literal


def test_text_glued_to_a_sentinel_begins_no_word(sentencepiece_model):
    vocabulary = SentencePieceVocabulary(path=sentencepiece_model)
    glued = vocabulary.encode("the<extra_id_0>language")
    spaced = vocabulary.encode("the <extra_id_0> language")
    assert vocabulary.decode(glued) == "the<extra_id_0>language"
    assert vocabulary.decode(spaced) == "the<extra_id_0> language"


@pytest.mark.parametrize("count", [-1, 10**10, 2.5, True])
def test_numbers_of_sentinels_are_bounded(count):
    with pytest.raises(UserError, match=r"num_sentinels must be an integer in \[0, 1"):
        ByteVocabulary(num_sentinels=count)

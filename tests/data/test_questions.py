"""The right answers of questions, in the forms in which data sets have them."""

import json

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.batching.readers import ExampleReader, TextPosition
from t5lite.data.batching.stream import eval_examples
from t5lite.data.questions import questions
from t5lite.data.sources.file_source import FileSource
from t5lite.data.task import Task
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.objectives.classes import Tagging
from t5lite.objectives.extraction import Extraction
from t5lite.objectives.supervised import Supervised


def task_of(tmp_path, rows, **choices):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {
        "source": FileSource(
            files={"train": "a.jsonl"},
            fields=tuple(rows[0]),
            folder=str(tmp_path),
            data_dir=str(tmp_path / "tfds"),
        ),
        "vocabulary": ByteVocabulary(),
        "objective": Supervised(inputs_length=32, targets_length=16),
        "inputs": "{q}",
        "targets": "{q}",
        "references": "refs",
        "metrics": ["squad"],
    }
    return Task(**{**given, **choices})


@pytest.mark.parametrize(
    ("refs", "answers"),
    [
        ({"text": ["1999", "in 1999"], "answer_start": [3, 0]}, ["1999", "in 1999"]),
        ({"text": "1999", "answer_start": 3}, ["1999"]),
        ([{"text": "1999", "answer_start": 3}], ["1999"]),
        (["a", "b"], ["a", "b"]),
        ("[1999]", ["[1999]"]),
        ('["x"]', ['["x"]']),
        ("plain", ["plain"]),
        (1999, ["1999"]),
        ({"text": [], "answer_start": []}, [""]),
        ([], [""]),
        ("", [""]),
    ],
)
def test_references_are_read_in_every_form(refs, answers, tmp_path):
    (question,) = questions(task_of(tmp_path, [{"q": "when", "refs": refs}]), "train")
    assert question.answers == answers


@pytest.mark.parametrize("refs", [[1999], {"txt": ["a"]}, {"text": [["a"]]}])
def test_other_references_are_rejected(refs, tmp_path):
    task = task_of(tmp_path, [{"q": "when", "refs": refs}])
    with pytest.raises(UserError, match="'refs' of record 0 must be a text, a list of texts, "):
        list(questions(task, "train"))


def test_a_question_without_an_answer_is_right_if_the_prediction_is_empty(tmp_path):
    task = task_of(tmp_path, [{"q": "when", "refs": {"text": [], "answer_start": []}}])
    answers = [question.answers for question in questions(task, "train")]
    names = ("squad_exact_match_fraction", "squad_f1_fraction")
    assert task.score(answers, [""]) == dict.fromkeys(names, 1.0)
    assert task.score(answers, ["1999"]) == dict.fromkeys(names, 0.0)


def test_a_text_that_reads_like_a_list_is_reported_once(tmp_path, caplog):
    rows = [{"q": str(n), "texts": '["x"]'} for n in range(2)]
    task = task_of(tmp_path, rows, references="texts")
    list(questions(task, "train"))
    assert caplog.text.count("reads like a JSON list; it counts as one answer") == 1
    parsed = task_of(tmp_path, rows, references="texts", preprocessors=["parse_json"])
    assert [question.answers for question in questions(parsed, "train")] == [["x"], ["x"]]


def test_choices_come_from_lists_and_json_texts(tmp_path):
    rows = [{"q": "a", "options": ["yes", "no"]}, {"q": "b", "options": '["yes", "no"]'}]
    task = task_of(tmp_path, rows, references=None, choices="options")
    found = [[text for text, _ in question.choices] for question in questions(task, "train")]
    assert found == [["yes", "no"]] * 2


def test_lists_of_words_and_tags_are_tagged(tmp_path):
    rows = [{"tokens": ["EU", "rejects", "German", "call"], "ner_tags": [3, 0, 7, 0]}]
    task = task_of(
        tmp_path,
        rows,
        inputs="{tokens}",
        targets="{ner_tags}",
        objective=Tagging(inputs_length=32, classes=[str(n) for n in range(9)]),
        references=None,
        metrics=[],
    )
    (question,) = questions(task, "train")
    (example,) = question.examples
    weights = example["target_weights"] > 0
    assert example["targets"][weights].tolist() == [3, 0, 7, 0]
    assert task.vocabulary.decode(example["inputs"]) == "EU rejects German call"


SQUAD_ROW = {
    "question": "q",
    "context": "a cat, a dog, a cat and a cow",
    "answers": {"text": ["a cat"], "answer_start": [14]},
}


def windows_task(tmp_path, rows):
    return task_of(
        tmp_path,
        rows,
        inputs="{question}<extra_id_0>{context}",
        targets="{answers.text.0}<extra_id_0>{before_answer}",
        preprocessors=["mark_answer"],
        objective=Extraction(inputs_length=16, stride=6),
        references=None,
    )


def test_training_and_evaluation_read_all_windows_of_a_context(tmp_path):
    unanswered = {**SQUAD_ROW, "answers": {"text": [], "answer_start": []}}
    task = windows_task(tmp_path, [SQUAD_ROW, unanswered])
    asked = list(questions(task, "train"))
    assert [question.answers for question in asked] == [["a cat"], [""]]
    for question in asked:
        for example, part in zip(question.examples, question.parts, strict=True):
            np.testing.assert_array_equal(example["inputs"], part["inputs"])
    examples = list(eval_examples(task, "train"))
    assert len(examples) == sum(len(question.examples) for question in asked) == 8
    found = [task.objective.prediction(e, e["targets"], task.vocabulary) for e in examples]
    # Not the first occurrence, which only the first window has.
    assert found == ["", "a cat", "a cat", "", "", "", "", ""]
    tokens = task.tokens("train")
    reader = ExampleReader(task, tokens, tokens.__getitem__)
    again, after = reader.read(TextPosition(0, 2), np.random.default_rng(0))
    np.testing.assert_array_equal(again["targets"], examples[2]["targets"])
    assert after == TextPosition(0, 3)
    assert reader.read(after, np.random.default_rng(0))[1] == TextPosition(1, 0)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["dog"], "answer_start": [2]}, "where context has the answer 'dog', got 2, wher"),
        ({"text": ["dog"]}, "answers must be an object with lists text and answer_start, got"),
        ({"text": "dog", "answer_start": 9}, "answers must be an object with lists text and"),
        ("dog", "answers must be an object with lists text and answer_start, got 'dog'"),
    ],
)
def test_answers_that_are_not_at_their_start_are_rejected(answers, message, tmp_path):
    row = {**SQUAD_ROW, "answers": answers}
    with pytest.raises(UserError, match=f"'mark_answer' failed on record 0: ValueE.*{message}"):
        list(eval_examples(windows_task(tmp_path, [row]), "train"))

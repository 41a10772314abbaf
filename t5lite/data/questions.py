"""The questions of an evaluation: examples with their right answers and choices."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from t5lite.core.errors import UserError, suggestion
from t5lite.core.examples import (
    ClassObjective,
    Example,
    PairObjective,
    Tokens,
    examples_of_pair,
)
from t5lite.core.json_values import decode_json
from t5lite.data.batching.stream import eval_examples
from t5lite.data.task import Task
from t5lite.data.text import preprocessors, templates
from t5lite.data.text.fields import JsonText, Record

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A pair of a split, or a stretch of its text, and how to judge a prediction for it.

    Args:
        examples: whose losses count; several if the objective makes several of the pair.
        answers: the right answers; empty if the task has no metrics.
        choices: the texts to choose from, each with the example that it makes; empty to generate.
        category: the value of `Task.category`.
        parts: what a model of classes reads to predict, if the task has metrics.
    """

    examples: Sequence[Example]
    answers: Sequence[str]
    choices: Sequence[tuple[str, Example]] = ()
    category: str | None = None
    parts: Sequence[Example] = ()


def questions(task: Task, split: str) -> Iterator[Question]:
    """Yields the questions of one pass over a split, in order and the same at every call.

    Raises:
        UserError: if a field is missing or has another type.
    """
    if not task.takes_pairs:
        for example in eval_examples(task, split):
            answer = task.vocabulary.decode(example["targets"])
            yield Question(examples=[example], answers=[answer])
        return
    objective = cast(PairObjective, task.objective)
    vocabulary = task.vocabulary
    tokens = task.tokens(split)
    records = task.source.records(split)

    def encoded(choices: Sequence[str]) -> list[tuple[str, Tokens]]:
        return [(text, vocabulary.encode(text)) for text in choices]

    classes = objective if isinstance(objective, ClassObjective) else None
    kept = vocabulary.kept_texts if task.preprocessors else None
    fixed = [] if isinstance(task.choices, str) else encoded(task.choices or ())
    for number in range(len(tokens)):
        texts = tokens[number]
        if not texts:
            continue
        made = [
            (inputs, targets, examples_of_pair(objective, inputs, targets, vocabulary))
            for inputs, targets in zip(texts[::2], texts[1::2], strict=True)
        ]
        if not (task.metrics or task.category):
            # The tokens suffice, and may come from a cache.
            for _, _, examples in made:
                yield Question(examples=examples, answers=[])
            continue
        record = preprocessors.changed(
            "Task.preprocessors", task.preprocessors, records[number], number, kept=kept
        )
        assert record is not None, "a dropped record has no texts"
        choices = fixed
        if isinstance(task.choices, str):
            choices = encoded(_choices(record, task.choices, number))
        for inputs, targets, examples in made:
            yield Question(
                examples=examples,
                answers=_answers(task, record, number, targets),
                choices=[
                    (text, objective.from_pair(inputs, ids, vocabulary)) for text, ids in choices
                ],
                category=task.category and _field("Task.category", record, task.category),
                parts=classes.parts(inputs, vocabulary) if classes and task.metrics else (),
            )


def _answers(task: Task, record: Record, number: int, targets: Tokens) -> list[str]:
    """Returns the right answers of a record or, in a dialogue, of a turn."""
    if task.references is not None:
        return _references(record, task.references, number)
    if task.dialogue is not None:
        return [task.vocabulary.decode(targets)]
    target = templates.fill(task.targets, record, list_separator=task.list_separator)
    # A target may hold more than the answer.
    answer_of = getattr(task.objective, "answer_of", None)
    return [target if answer_of is None else answer_of(target)]


def _field(owner: str, record: Mapping[str, str], name: str) -> str:
    if name not in record:
        raise UserError(f"{owner} names the field {name!r}; {suggestion(name, record)}")
    return record[name]


def _references(record: Mapping[str, str], name: str, number: int) -> list[str]:
    """Returns the right answers that a field holds; without any, the empty text.

    A field holds a text, a list of texts, SQuAD's {"text": [...], "answer_start": [...]}, or a list
    of objects with a `text`.
    """
    owner = "Task.references"
    field = _field(owner, record, name)
    if not isinstance(field, JsonText):
        _warn_of_json(owner, name, field)
        return [str(field)]
    value = field.value
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    values = value if isinstance(value, list) else [value]
    texts = [each["text"] if isinstance(each, dict) and "text" in each else each for each in values]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"{owner}: field {name!r} of record {number} must be a text, a list of texts, or an "
            f"object with 'text', got {field}"
        )
    return texts or [""]


def _choices(record: Mapping[str, str], name: str, number: int) -> list[str]:
    """Returns the texts of a field that holds a list, or a text that is a JSON list."""
    owner = "Task.choices"
    field = _field(owner, record, name)
    texts = _json_list(field)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"{owner}: field {name!r} of record {number} must be a list of texts, got {field}"
        )
    return texts


def _json_list(text: str) -> list[Any] | None:
    try:
        value = decode_json(text)
    except ValueError:
        return None
    return value if isinstance(value, list) else None


def _warn_of_json(owner: str, name: str, text: str) -> None:
    texts = _json_list(text) if text.startswith("[") else None
    if texts and all(isinstance(each, str) for each in texts):
        _warn_of_list(owner, name)


@functools.cache
def _warn_of_list(owner: str, name: str) -> None:
    log.warning(
        "%s: field %r is a text that reads like a JSON list; it counts as one answer. For a list, "
        "add the preprocessor parse_json",
        owner,
        name,
    )

"""What evaluation asks a model: examples with their right answers."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from t5lite.core.errors import UserError, suggestion
from t5lite.core.examples import Example, PairObjective, Tokens
from t5lite.data.batching.stream import eval_examples
from t5lite.data.task import Task
from t5lite.data.text import preprocessors, templates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One example of a split.

    Args:
        answers: the right ones; none where the task names no metrics.
        choices: what is to be chosen from; none for writing freely. With the targets that each
            makes.
        category: what `Task.category` says of it.
    """

    example: Example
    answers: Sequence[str]
    choices: Sequence[tuple[str, Example]] = ()
    category: str | None = None


def questions(task: Task, split: str) -> Iterator[Question]:
    """Yields those of one pass over a split, in order, the same at every call.

    Raises:
        UserError: where a field is not there, or not what it should be.
    """
    if not task.takes_pairs:
        for example in eval_examples(task, split):
            answer = task.vocabulary.decode(example["targets"])
            yield Question(example=example, answers=[answer])
        return
    objective, vocabulary = cast(PairObjective, task.objective), task.vocabulary
    tokens, records = task.tokens(split), task.source.records(split)

    def encoded(choices: Sequence[str]) -> list[tuple[str, Tokens]]:
        return [(text, vocabulary.encode(text)) for text in choices]

    fixed = [] if isinstance(task.choices, str) else encoded(task.choices or ())
    for number in range(len(tokens)):
        texts = tokens[number]
        if not texts:
            continue
        inputs, targets = texts
        example = objective.from_pair(inputs, targets, vocabulary)
        if not (task.metrics or task.category):
            # The text itself is not needed, where its tokens are in a cache.
            yield Question(example=example, answers=[])
            continue
        steps = task.preprocessors
        record = preprocessors.changed("Task.preprocessors", steps, records[number], number)
        assert record is not None, "a record that was left out has no texts"
        answers: Sequence[str] = [templates.fill(task.targets, record)]
        if task.references is not None:
            owner = "Task.references"
            answers = _texts_of(owner, record, task.references, number, may_be_one=True)
        choices = fixed
        if isinstance(task.choices, str):
            owner = "Task.choices"
            choices = encoded(_texts_of(owner, record, task.choices, number, may_be_one=False))
        yield Question(
            example=example,
            answers=answers,
            choices=[(text, objective.from_pair(inputs, ids, vocabulary)) for text, ids in choices],
            category=task.category and _field("Task.category", record, task.category),
        )


def _field(owner: str, record: Mapping[str, str], name: str) -> str:
    if name not in record:
        raise UserError(f"{owner} names the field {name!r}; {suggestion(name, record)}")
    return record[name]


def _texts_of(
    owner: str, record: Mapping[str, str], name: str, number: int, *, may_be_one: bool
) -> list[str]:
    """Returns the texts of a field that holds a JSON list of them or, where it may, one text."""
    text = _field(owner, record, name)
    try:
        texts = json.loads(text)
    except ValueError:
        texts = None
    if may_be_one and not isinstance(texts, list):
        return [text]
    if not (isinstance(texts, list) and texts and all(isinstance(each, str) for each in texts)):
        raise UserError(
            f"{owner}: field {name!r} of record {number} must be a JSON list of texts, got {text}"
        )
    return texts

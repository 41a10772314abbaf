"""Predicted answers of a task's questions: generated, the most likely of choices, or classes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from t5lite.core.examples import ClassObjective
from t5lite.data.mixture import Mixture
from t5lite.data.questions import Question
from t5lite.data.task import Task
from t5lite.inference.class_predictions import (
    PredictClasses,
    make_predict_classes,
    predict_parts,
)
from t5lite.inference.decoding import Decoding, check_target_lengths
from t5lite.inference.predict import Predict, Prompt, make_predict
from t5lite.inference.score import Score, make_score
from t5lite.models.model import Model, generative
from t5lite.parallel.mesh import DeviceMesh

# From parameters, a task and its questions to an answer for each question.
PredictAnswers = Callable[[Any, Task, Sequence[Question]], list[str]]
# Called with what is being done, the number of examples done, and the total, None if unknown.
ReportProgress = Callable[[str, int, int | None], None]


def make_predict_answers(
    model: Model,
    mesh: DeviceMesh,
    task: Task | Mixture,
    decoding: Decoding,
    *,
    batch_size: int,
    on_progress: ReportProgress,
) -> PredictAnswers:
    """Returns a function that answers the questions of a task.

    Raises:
        UserError: if `decoding` allows longer targets than a task has.
    """
    if model.classes is not None:
        return _make_classify(model, mesh, batch_size=batch_size, on_progress=on_progress)
    for part in task.tasks:
        if part.metrics and part.choices is None:
            owner = f"{type(part.objective).__name__}.targets_length"
            check_target_lengths(vars(decoding), part.objective.targets_length, owner)

    @functools.cache
    def generator(inputs_length: int, targets_length: int) -> Predict:
        return make_predict(
            generative(model, "Task.metrics"),
            mesh,
            decoding,
            stop_ids=task.vocabulary.stop_ids,
            first_ids=task.vocabulary.first_ids,
            inputs_length=inputs_length,
            targets_length=targets_length,
            batch_size=batch_size,
        )

    @functools.cache
    def scorer(inputs_length: int, targets_length: int) -> Score:
        return make_score(
            generative(model, "Task.metrics"),
            mesh,
            inputs_length=inputs_length,
            targets_length=targets_length,
            batch_size=batch_size,
        )

    def predict_answers(params: Any, part: Task, asked: Sequence[Question]) -> list[str]:
        lengths = (part.objective.inputs_length, part.objective.targets_length)

        def on_done(done: int) -> None:
            on_progress(f"{part.name}: predictions", done, total)

        if part.choices is not None:
            examples = [example for question in asked for _, example in question.choices]
            total = len(examples)
            on_done(0)
            scores = iter(scorer(*lengths)(params, examples, on_done))
            return [
                max((next(scores).score, -n, text) for n, (text, _) in enumerate(q.choices))[2]
                for q in asked
            ]
        prompts = [
            Prompt(inputs=question.examples[0]["inputs"], number=number)
            for number, question in enumerate(asked)
        ]
        total = len(prompts)
        on_done(0)
        targets = generator(*lengths)(params, prompts, on_done)
        return [part.vocabulary.decode(best.tokens) for best, *_ in targets]

    return predict_answers


def _make_classify(
    model: Model, mesh: DeviceMesh, *, batch_size: int, on_progress: ReportProgress
) -> PredictAnswers:
    """Returns a function that answers the questions of a task with the predicted classes."""

    @functools.cache
    def classifier(inputs_length: int, span_length: int) -> PredictClasses:
        return make_predict_classes(
            model,
            mesh,
            inputs_length=inputs_length,
            batch_size=batch_size,
            span_length=span_length,
        )

    def predict_answers(params: Any, part: Task, asked: Sequence[Question]) -> list[str]:
        objective = part.objective
        assert isinstance(objective, ClassObjective), objective

        def on_done(done: int) -> None:
            on_progress(f"{part.name}: predictions", done, len(asked))

        on_done(0)
        parts = [question.parts for question in asked]
        predict = classifier(objective.part_length, objective.span_length)
        found = predict_parts(predict, params, parts, on_done)
        return [
            objective.answer(each, of_parts, part.vocabulary).text
            for each, of_parts in zip(parts, found, strict=True)
        ]

    return predict_answers

"""Whether the tasks of a run fit its model."""

from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.fields import field_error
from t5lite.data.mixture import Mixture
from t5lite.data.task import Task
from t5lite.models.classifier import RANKING, SPAN
from t5lite.models.model import Model
from t5lite.objectives.classes import Classification, Tagging
from t5lite.objectives.extraction import Extraction
from t5lite.objectives.masked_lm import MaskedLM
from t5lite.objectives.ranking import Ranking
from t5lite.objectives.sentence_pairs import SentencePairs

# Objectives with one target for each position of the inputs.
_OF_ENCODERS = (MaskedLM, SentencePairs, Classification, Tagging, Extraction, Ranking)


def check_tasks_fit(model: Model, tasks: Task | Mixture, train_split: str) -> None:
    """Checks that a model can train on tasks, and predict what their metrics score.

    Args:
        train_split: the split that trains, or a slice of it.

    Raises:
        UserError: if ids, objective, metrics, choices or few-shot examples of a task do not fit.
    """
    vocabulary = tasks.vocabulary
    if vocabulary.size > model.config.vocab_size:
        raise UserError(
            f"T5Config.vocab_size must be at least the vocabulary's {vocabulary.size} ids "
            f"({vocabulary.num_sentinels} sentinels included), got {model.config.vocab_size}"
        )
    for task in tasks.tasks:
        _check_positions_have_targets(model, task.objective)
        _check_document_start(model, task)
        _check_few_shot(task, train_split)
        kind = type(model).__name__
        objective = type(task.objective).__name__
        predicts = model.has_decoder or model.classes is not None
        if task.metrics and not predicts:
            raise UserError(
                f"Task.metrics of {task.name!r} need a model with a decoder to write, or with "
                f"classes, got {kind}; its accuracy is reported without metrics"
            )
        if task.choices is not None and not model.has_decoder:
            raise UserError(
                f"Task.choices of {task.name!r} need a model with a decoder, got {kind}"
            )
        if task.metrics and task.objective.inputs_length == 0:
            raise UserError(
                f"Task.metrics of {task.name!r} need an objective with inputs, got {objective}"
            )
        if model.has_encoder and task.objective.inputs_length == 0:
            raise UserError(
                f"{kind} cannot train on {objective}: it makes no inputs; use DecoderOnly or "
                "another objective"
            )


def _check_few_shot(task: Task, train_split: str) -> None:
    """Raises a UserError if few-shot examples come from another split than that of training."""
    few_shot = task.few_shot
    if few_shot is None:
        return
    # A slice is as in "train[:10%]".
    name = train_split.partition("[")[0]
    if few_shot.split.partition("[")[0] != name:
        rule = f"{name!r}, the split of training, or a part of it"
        raise field_error(few_shot, "split", rule)


def _check_document_start(model: Model, task: Task) -> None:
    """Checks that documents whose every token is predicted start as decoding does."""
    if task.join_documents or not getattr(task.objective, "lookahead", 0):
        return
    wanted = task.vocabulary.document_start
    if model.config.start_token != wanted:
        raise UserError(
            f"T5Config.start_token must be {wanted}, the token before each document of "
            f"{type(task.objective).__name__}, got {model.config.start_token}; bind one of "
            "T5Config.start_token and SpecialTokens.bos_id of the vocabulary"
        )


def _check_positions_have_targets(model: Model, objective: Any) -> None:
    """Checks that an encoder alone gets objectives with one target for each position."""
    kind = type(model).__name__
    name = type(objective).__name__
    needed: type | None = None
    if not model.has_decoder:
        needed = SentencePairs if model.config.next_sentence else MaskedLM
        if model.classes is not None:
            needed = Tagging if model.classes.per_token else Classification
            kind = f"{kind} with Classes.per_token={model.classes.per_token}"
            if model.classes.structure == SPAN:
                needed = Extraction
                kind = f"{kind} and Classes.structure={SPAN!r}"
            if model.classes.structure == RANKING:
                needed = Ranking
                kind = f"{kind} and Classes.structure={RANKING!r}"
    if needed is not None and not isinstance(objective, needed):
        raise UserError(f"{kind} cannot train on {name}; use {needed.__name__}")
    if needed is None and isinstance(objective, _OF_ENCODERS):
        raise UserError(f"{kind} cannot train on {name}, which is for EncoderOnly and classifiers")
    if isinstance(objective, Classification | Tagging):
        count = model.classes.count if model.classes else 0
        if len(objective.classes) != count:
            raise UserError(
                f"Classes.count must be the number of {name}.classes ({len(objective.classes)}), "
                f"got {count}"
            )
        names = model.classes.names if model.classes else ()
        if names and tuple(names) != tuple(objective.classes):
            raise UserError(
                f"{name}.classes must be the model's Classes.names {list(names)}, in this order, "
                f"got {list(objective.classes)}"
            )

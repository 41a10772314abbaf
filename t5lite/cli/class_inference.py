"""What `t5lite infer` predicts with a model that has classes instead of targets."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.examples import ClassObjective
from t5lite.models.classifier import RANKING, SPAN, Classes
from t5lite.objectives.classes import Classification, Tagging
from t5lite.objectives.extraction import Extraction
from t5lite.objectives.ranking import Ranking

# What only models with a decoder read, as gin binds it.
_OF_DECODERS = (
    "decoding",
    "num_best",
    "distinct",
    "seed",
    "targets",
    "targets_length",
    "end_inputs",
)


def check_class_flags(mode: str, bindings: Sequence[str]) -> None:
    """Raises a UserError for a mode or a flag that has no effect. Gin files serve all models."""
    if mode != "predict":
        raise UserError(
            f"--mode={mode} needs a model with a decoder, got one of classes; use --mode=predict, "
            "or t5lite eval"
        )
    names = [f"infer.{name}" for name in _OF_DECODERS]
    for binding in bindings:
        flag = binding.partition("=")[0].strip()
        name = flag.rpartition("/")[2].removeprefix("t5lite.")
        if name in names or name.startswith("Decoding."):
            raise UserError(
                f"--gin.{flag} has no effect with a model of classes, which generates nothing; "
                "leave it out"
            )


def class_objective(classes: Classes, trained: Sequence[Any], inputs_length: int) -> ClassObjective:
    """Returns the objective by which inputs become examples and classes become texts.

    Args:
        trained: the objectives of the run; none if only the checkpoint is known.
        inputs_length: maximum number of tokens of one example.

    Raises:
        UserError: if the names of the classes are not known, or differ between tasks.
    """
    if classes.structure == RANKING:
        found = {dataclasses.replace(each, pair_length=inputs_length) for each in trained}
        found = found or {Ranking(pair_length=inputs_length)}
    else:
        found = {dataclasses.replace(each, inputs_length=inputs_length) for each in trained}
    if not found and classes.structure == SPAN:
        found = {Extraction(inputs_length=inputs_length)}
    if not found and classes.names:
        kind = Tagging if classes.per_token else Classification
        found = {kind(inputs_length=inputs_length, classes=classes.names)}
    if len(found) != 1:
        raise UserError(
            f"infer needs the names of the {classes.count} classes, got {len(found)} lists of "
            "them; add the --gin_file of a run with one task, such as MODEL_DIR/config.gin"
        )
    (objective,) = found
    return objective

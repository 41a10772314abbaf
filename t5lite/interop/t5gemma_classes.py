"""The classes of transformers that T5Gemma and T5Gemma 2 are saved from, and their scores.

Source: huggingface/transformers@v5.24.0:src/transformers/models/{t5gemma,t5gemma2}.
"""

import dataclasses
from collections.abc import Mapping

from t5lite.core.errors import UserError
from t5lite.interop.class_labels import read_classes
from t5lite.interop.family import Settings
from t5lite.interop.foreign import StoredArray
from t5lite.models.classifier import Classes
from t5lite.models.model import Model

GEMMA_GENERATOR = "ForConditionalGeneration"
GEMMA_ENCODER = "EncoderModel"
GEMMA_TAGGER = "ForTokenClassification"
GEMMA_CLASSIFIER = "ForSequenceClassification"
SCORE_TENSORS = {
    "classifier/kernel": "score.out_proj.weight",
    "classifier/bias": "score.out_proj.bias",
}


def read_scores(
    kind: str | None, settings: Settings, tensors: Mapping[str, StoredArray], owner: str
) -> Classes | None:
    """Returns the classes of a folder that was saved from a class that ends in `kind`."""
    if kind not in (GEMMA_TAGGER, GEMMA_CLASSIFIER):
        return None
    matrix = SCORE_TENSORS["classifier/kernel"]
    classes = read_classes(settings, tensors, owner, matrix=matrix, per_token=kind == GEMMA_TAGGER)
    return dataclasses.replace(classes, pooling="mean" if kind == GEMMA_TAGGER else "last")


def kind_to_write(model: Model, family: str) -> str:
    """Returns how the class that a model is written as ends.

    Raises:
        UserError: for classes that the classifiers of the family do not have.
    """
    classes = model.classes
    if classes is None:
        return GEMMA_GENERATOR if model.has_decoder else GEMMA_ENCODER
    if classes.has_dense or not (classes.per_token or classes.pooling == "last"):
        raise UserError(
            f"--to=huggingface: {family} of transformers has no counterpart of {classes}; keep the "
            "checkpoint in t5lite's format"
        )
    return GEMMA_TAGGER if classes.per_token else GEMMA_CLASSIFIER


def score_remarks(model: Model) -> tuple[str, ...]:
    """Returns what a user should know of the class of a sequence that a decoder computes."""
    if model.classes is None or model.classes.per_token or not model.config.num_decoder_layers:
        return ()
    # NOTE: before padding on the right transformers reads one token more.
    remark = (
        "the class of a sequence is the one that transformers computes without padding; there "
        "padding changes it"
    )
    return (remark,)

"""The families of Hugging Face models that are read and written, by `model_type`."""

from typing import NamedTuple

from t5lite.core.errors import UserError
from t5lite.interop.bert import BERT_FAMILY
from t5lite.interop.decoder_families import DECODER_FAMILIES, decoder_to_write
from t5lite.interop.family import Family
from t5lite.interop.modernbert import MODERNBERT_FAMILY
from t5lite.interop.t5_family import T5_FAMILY
from t5lite.interop.t5gemma import T5GEMMA_FAMILY
from t5lite.interop.t5gemma2 import T5GEMMA2_FAMILY
from t5lite.models.model import Model

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), T5_FAMILY),
    "t5gemma": T5GEMMA_FAMILY,
    "t5gemma2": T5GEMMA2_FAMILY,
    **DECODER_FAMILIES,
    "bert": BERT_FAMILY,
    "modernbert": MODERNBERT_FAMILY,
}


def family_to_write(model: Model) -> Family:
    """Returns the family that a model is written as; it may find that it has no class for it."""
    if not model.has_encoder:
        return decoder_to_write(model)
    if model.config.merged_attention:
        return T5GEMMA2_FAMILY
    if not model.has_decoder and model.config.norm in ("layer", "layer_no_bias"):
        return BERT_FAMILY if model.config.positions == "learned" else MODERNBERT_FAMILY
    return T5GEMMA_FAMILY if model.config.positions == "rotary" else T5_FAMILY


class TransformersClass(NamedTuple):
    """The class of transformers that a model is written as, and the `model_type` of its family."""

    name: str
    family: str


def transformers_class(model: Model) -> TransformersClass | None:
    """Returns the class that a model is written as; None if transformers has none for it."""
    try:
        settings = family_to_write(model).write(model, "float32").settings
    except UserError:
        return None
    return TransformersClass(settings["architectures"][0], settings["model_type"])

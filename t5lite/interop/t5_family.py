"""T5, mT5, umT5 and LongT5 of transformers: tensors and classes.

Source: huggingface/transformers@v5.24.0:src/transformers/models/{t5,mt5,umt5,longt5}.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5lite.core.errors import UserError
from t5lite.interop.class_labels import label_settings, read_classes
from t5lite.interop.family import Family, ReadModel, Settings, WrittenModel
from t5lite.interop.foreign import Rows, StoredArray, equal_stored
from t5lite.interop.saved_class import saved_class
from t5lite.interop.t5_fields import T5_FIELDS
from t5lite.interop.t5_settings import logits_scale, settings_of, t5_config
from t5lite.models.architectures import EncoderDecoder, EncoderOnly
from t5lite.models.config import T5Config
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from t5lite.models.model import Model

EMBEDDING = "token_embedder/embedding"
LOGITS = "decoder/logits_dense/kernel"
SHARED = "shared.weight"
LM_HEAD = "lm_head.weight"
# Other names of the embedding.
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Old checkpoints hold a bias that no T5 reads.
UNUSED_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
# Classes with a classifier keep the rest under this name; `tensor_names` removes it.
CLASSIFIER_PREFIX = "transformer."
# Names of the classifier's tensors in T5ForTokenClassification and T5ForSequenceClassification.
_TAGGER = {"classifier/kernel": "classifier.weight", "classifier/bias": "classifier.bias"}
_CLASSIFIER = {
    "classifier/dense/kernel": "classification_head.dense.weight",
    "classifier/dense/bias": "classification_head.dense.bias",
    "classifier/kernel": "classification_head.out_proj.weight",
    "classifier/bias": "classification_head.out_proj.bias",
}

# How the names of the supported classes end; the second name is that of transformers 2.
GENERATOR = ("ForConditionalGeneration", "WithLMHeadModel")
SUPPORTED_CLASSES = (
    *GENERATOR,
    "EncoderModel",
    "ForTokenClassification",
    "ForSequenceClassification",
)

_PROJECTIONS = {"query": "q", "key": "k", "value": "v", "out": "o"}
_ENCODER_ATTENTION = {
    "full": "SelfAttention",
    "local": "LocalSelfAttention",
    "transient_global": "TransientGlobalSelfAttention",
}
_WHOLE = {
    EMBEDDING: SHARED,
    LOGITS: LM_HEAD,
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
}


def t5_tensor_name(model: Model, name: str) -> str:
    """Returns the tensor of a parameter, with `{layer}` if each layer has one.

    >>> config = T5Config(
    ...     vocab_size=384, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1)
    >>> t5_tensor_name(EncoderOnly(config), "encoder/layers/attention/out/kernel")
    'encoder.block.{layer}.layer.0.SelfAttention.o.weight'
    """
    if name in _WHOLE:
        return _WHOLE[name]
    stack, *inner = name.split("/")
    if stack == "classifier":
        has_dense = model.classes is not None and model.classes.has_dense
        return (_CLASSIFIER if has_dense else _TAGGER)[name]
    is_encoder = stack == "encoder"
    own = _ENCODER_ATTENTION[model.config.encoder_attention] if is_encoder else "SelfAttention"
    first = f"{stack}.block.0.layer.0.{own}."
    if inner[0] == "relpos_bias":
        return first + "relative_attention_bias.weight"
    if inner[0] == "side_relpos_bias":
        return first + "global_relative_attention_bias.weight"
    block = f"{stack}.block.{{layer}}.layer."
    (part, *rest) = inner[1:]
    last = 1 if is_encoder else 2
    match part:
        case "pre_attention_layer_norm" | "pre_self_attention_layer_norm":
            return block + "0.layer_norm.weight"
        case "pre_cross_attention_layer_norm":
            return block + "1.layer_norm.weight"
        case "pre_mlp_layer_norm":
            return f"{block}{last}.layer_norm.weight"
        case "relpos_bias":
            return f"{block}0.{own}.relative_attention_bias.weight"
        case "global_layer_norm":
            return f"{block}0.{own}.global_input_layer_norm.weight"
        case "attention" | "self_attention":
            return f"{block}0.{own}.{_PROJECTIONS[rest[0]]}.weight"
        case "encoder_decoder_attention":
            return f"{block}1.EncDecAttention.{_PROJECTIONS[rest[0]]}.weight"
        case "mlp":
            return f"{block}{last}.DenseReluDense.{rest[0]}.weight"
    raise AssertionError(name)


def _is_transposed(name: str) -> bool:
    return name.endswith(("/kernel", "/rel_embedding"))


def _read(settings: Settings, tensors: dict[str, StoredArray], owner: str) -> ReadModel:
    config = t5_config(settings, f"{owner}/config.json")
    head = _class_of(settings, tensors, owner)
    tensors = _without_aliases(tensors, owner)
    if head == GENERATOR[0]:
        return _with_logits(config, logits_scale(settings, f"{owner}/config.json"), tensors)
    config = dataclasses.replace(config, tied_logits=True)
    if head == "ForSequenceClassification":
        matrix = _CLASSIFIER["classifier/kernel"]
        classes = read_classes(settings, tensors, owner, matrix=matrix, per_token=False)
        classes = dataclasses.replace(classes, pooling="last", has_dense=True)
        return ReadModel(model=EncoderDecoderClassifier(config, classes), tensors=tensors)
    config = dataclasses.replace(config, num_decoder_layers=0)
    if head == "EncoderModel":
        return ReadModel(model=EncoderOnly(config), tensors=tensors)
    matrix = _TAGGER["classifier/kernel"]
    classes = read_classes(settings, tensors, owner, matrix=matrix, per_token=True)
    return ReadModel(model=EncoderOnly(config, classes), tensors=tensors)


def _class_of(settings: Settings, tensors: Mapping[str, StoredArray], owner: str) -> str:
    """Returns the class that was saved: by its name or, if there is none, by its tensors.

    Raises:
        UserError: naming a class that is not supported.
    """
    if (named := saved_class(settings, SUPPORTED_CLASSES, owner)) is not None:
        return GENERATOR[0] if named in GENERATOR else named
    if _CLASSIFIER["classifier/kernel"] in tensors:
        return "ForSequenceClassification"
    if any(name.startswith("decoder.") for name in tensors):
        return GENERATOR[0]
    return "ForTokenClassification" if "classifier.weight" in tensors else "EncoderModel"


def _without_aliases(tensors: dict[str, StoredArray], owner: str) -> dict[str, StoredArray]:
    """Keeps the embedding under one name.

    Raises:
        UserError: if the embeddings under its names differ.
    """
    known = [name for name in (SHARED, *ALIASES) if name in tensors]
    if not known:
        return tensors
    first, *others = known
    for other in others:
        if not equal_stored(tensors[first], tensors[other]):
            raise UserError(
                f"{owner}: {other} must equal {first}, as T5 has one embedding; got two that differ"
            )
    rest = {name: stored for name, stored in tensors.items() if name not in known}
    return {SHARED: tensors[first], **rest}


def _with_logits(config: T5Config, scale: float, tensors: dict[str, StoredArray]) -> ReadModel:
    """Returns the model with tied logits or with a kernel for them, as the tensors need.

    Args:
        scale: of the decoder's output before the logits.
    """
    head = tensors.get(LM_HEAD)
    tensors = {name: stored for name, stored in tensors.items() if name != LM_HEAD}
    embedding = tensors.get(SHARED)
    # Some files hold an embedding that is tied under both names.
    if head is not None and embedding is not None and equal_stored(head, embedding):
        head = None
    if head is None and scale != 1.0:
        model = EncoderDecoder(dataclasses.replace(config, tied_logits=True))
        return ReadModel(model=model, tensors=tensors)
    model = EncoderDecoder(dataclasses.replace(config, tied_logits=False))
    if head is not None and scale != 1.0:
        # The model scales the result of a matrix of its own: the factor moves into the matrix.
        remark = f"{LM_HEAD} is multiplied by 1 / sqrt(d_model), the factor that its model applies"
        scaled = dataclasses.replace(head, read=_times(head, 1.0 / math.sqrt(config.embed_dim)))
        return ReadModel(model=model, tensors={**tensors, LM_HEAD: scaled}, remarks=(remark,))
    if head is None and embedding is not None:
        remark = (
            f"there is no {LM_HEAD}: the logits use a copy of {SHARED}, because they are tied to "
            "it without T5's scale; training makes the two differ"
        )
        return ReadModel(model=model, tensors={**tensors, LM_HEAD: embedding}, remarks=(remark,))
    return ReadModel(model=model, tensors=tensors if head is None else {**tensors, LM_HEAD: head})


def _times(stored: StoredArray, factor: float) -> Any:
    def read(rows: Rows) -> np.ndarray:
        return np.asarray(stored.read(rows), np.float32) * np.float32(factor)

    return read


def _write(model: Model, dtype: str) -> WrittenModel:
    settings, remarks = settings_of(model, dtype)
    factors: dict[str, float] = {}
    is_scaled = logits_scale(settings, "config.json") != 1.0
    if is_scaled and model.has_decoder and not model.config.tied_logits:
        factors[LOGITS] = math.sqrt(model.config.embed_dim)
        remarks.append(
            f"{LM_HEAD} is multiplied by sqrt(d_model), because transformers 5 divides umT5's "
            "logits by it; earlier versions ignore it and tie the logits to the embedding"
        )
    return WrittenModel(
        settings=settings | label_settings(model.classes),
        factors=factors,
        # An encoder has no class with logits of tokens; `settings_of` remarks on it.
        skipped=frozenset({"logits_dense/kernel"}),
        prefix="" if model.classes is None else CLASSIFIER_PREFIX,
        unprefixed=frozenset(_CLASSIFIER),
        remarks=tuple(remarks),
    )


T5_FAMILY = Family(
    fields=T5_FIELDS,
    read=_read,
    write=_write,
    tensor_name=t5_tensor_name,
    is_transposed=_is_transposed,
    roots=frozenset(
        {"shared", "encoder", "decoder", "lm_head", "classifier", "classification_head"}
    ),
    unused=frozenset({UNUSED_BIAS}),
)

"""BERT of transformers: an encoder alone, with logits of tokens, or of classes for each token.

Source: huggingface/transformers@v5.24.0:src/transformers/models/bert.
"""

from typing import Any

from t5lite.core.errors import UserError
from t5lite.interop.class_labels import label_settings
from t5lite.interop.encoder_settings import (
    ENCODER_SIZE_FIELDS,
    HEADS,
    MASKED_LM,
    PRETRAINING,
    activation,
    class_of,
    encoder_model,
    logits_fields,
    size_fields,
    written_activation,
    written_class,
    written_sizes,
)
from t5lite.interop.family import Family, ReadModel, Settings, WrittenModel
from t5lite.interop.field_groups import (
    COMMON_NEUTRAL_FIELDS,
    COMMON_REQUIRED_VALUES,
    FieldGroups,
)
from t5lite.interop.foreign import StoredArray
from t5lite.interop.generation_settings import SpecialIds
from t5lite.interop.saved_class import saved_class
from t5lite.interop.settings_values import number, size, truth
from t5lite.interop.tied_logits import without_tied_head
from t5lite.interop.writable import no_counterpart
from t5lite.models.classifier import SPAN
from t5lite.models.config import T5Config
from t5lite.models.model import Model

_NAME = "Bert"
_SUPPORTED = (
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertModel",
)
# The values that the classes take if the file has none.
_DEFAULTS = {
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}
_FIXED: dict[str, Any] = {
    "norm": "layer",
    "norm_placement": "post",
    "embedding_norm": True,
    "linear_bias": True,
    "positions": "learned",
}
_FIELDS = FieldGroups(
    applied=ENCODER_SIZE_FIELDS.union(
        _DEFAULTS, ["architectures", "model_type", "hidden_act", "pad_token_id", "eos_token_id"]
    ),
    required=COMMON_REQUIRED_VALUES
    | {
        "is_decoder": (False, None),
        "cross_attention_hidden_size": (None,),
        "position_embedding_type": ("absolute", None),
    },
    neutral=COMMON_NEUTRAL_FIELDS.union(
        [
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "initializer_range",
            "cls_token_id",
            # Of Google's checkpoints, whose poolers are not read.
            "directionality",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
        ]
    ),
)

_EMBEDDING = "embeddings.word_embeddings.weight"
_HEAD = "cls.predictions."
_DECODER = f"{_HEAD}decoder.weight"
_DECODER_BIAS = f"{_HEAD}decoder.bias"
_BIAS = f"{_HEAD}bias"
_LAYER = "encoder.layer.{layer}."
_MODULES = {
    "token_embedder": "embeddings.word_embeddings",
    "encoder/position_embedder": "embeddings.position_embeddings",
    "encoder/token_type_embedder": "embeddings.token_type_embeddings",
    "encoder/embedding_norm": "embeddings.LayerNorm",
    "encoder/layers/attention/query": f"{_LAYER}attention.self.query",
    "encoder/layers/attention/key": f"{_LAYER}attention.self.key",
    "encoder/layers/attention/value": f"{_LAYER}attention.self.value",
    "encoder/layers/attention/out": f"{_LAYER}attention.output.dense",
    "encoder/layers/post_attention_layer_norm": f"{_LAYER}attention.output.LayerNorm",
    "encoder/layers/mlp/wi": f"{_LAYER}intermediate.dense",
    "encoder/layers/mlp/wo": f"{_LAYER}output.dense",
    "encoder/layers/post_mlp_layer_norm": f"{_LAYER}output.LayerNorm",
    "logits_transform/dense": f"{_HEAD}transform.dense",
    "logits_transform/norm": f"{_HEAD}transform.LayerNorm",
    "logits_dense": f"{_HEAD}decoder",
    "classifier": "classifier",
    "answers": "qa_outputs",
    "next_sentence/dense": "pooler.dense",
    "next_sentence": "cls.seq_relationship",
}
# Tensors that no model reads, by how their names begin, and why.
_UNREAD = {
    "pooler.": "only BertForPreTraining predicts next sentences from it",
    "cls.seq_relationship.": "only BertForPreTraining predicts next sentences",
    "embeddings.position_ids": "it counts positions",
    "embeddings.token_type_ids": "it holds zeros",
}


_OF_PAIRS = ("pooler.", "cls.seq_relationship.")


def _tensor_name(model: Model, name: str) -> str:
    """Returns the tensor of a parameter, without `bert.`, with `{layer}` if each layer has one."""
    if name == "logits_bias":
        return _BIAS if model.config.tied_logits else _DECODER_BIAS
    module, _, leaf = name.rpartition("/")
    if module == "classifier" and model.classes and model.classes.structure == SPAN:
        module = "answers"
    return f"{_MODULES[module]}.{'bias' if leaf == 'bias' else 'weight'}"


def _read(settings: Settings, tensors: dict[str, StoredArray], owner: str) -> ReadModel:
    where = f"{owner}/config.json: "
    kind = class_of(saved_class(settings, _SUPPORTED, owner), tensors, _HEAD)
    given = {**_DEFAULTS, **settings}
    tied = truth(given, "tie_word_embeddings", where)
    is_masked_lm = kind in (MASKED_LM, PRETRAINING)
    try:
        config = T5Config(
            **_FIXED,
            **size_fields(settings, where),
            **logits_fields(kind, tied=tied, transform=is_masked_lm, bias=True),
            mlp_activations=(activation(settings, "hidden_act", where),),
            norm_epsilon=number(given, "layer_norm_eps", where),
            max_positions=size(given, "max_position_embeddings", where),
            num_token_types=size(given, "type_vocab_size", where),
        )
    except UserError as error:
        raise UserError(f"{owner} does not describe a {_NAME}: {error}") from error
    tensors, remarks = _read_tensors(tensors, has_pairs=kind == PRETRAINING)
    if is_masked_lm and tied:
        tensors = _without_copies(tensors, owner)
    elif is_masked_lm and tensors.pop(_BIAS, None) is not None:
        remarks.append(f"{_BIAS} is not read: {_DECODER_BIAS} is the bias of untied logits")
    model = encoder_model(settings, config, kind, tensors, owner)
    return ReadModel(model=model, tensors=tensors, remarks=tuple(remarks))


def _read_tensors(
    tensors: dict[str, StoredArray], *, has_pairs: bool
) -> tuple[dict[str, StoredArray], list[str]]:
    """Returns the tensors that are read by the names of transformers 5, and remarks."""
    unread_tensors = {
        begin: why for begin, why in _UNREAD.items() if not (has_pairs and begin in _OF_PAIRS)
    }
    kept = {}
    remarks = dict[str, str]()
    for name, stored in tensors.items():
        unread = next((begin for begin in unread_tensors if name.startswith(begin)), None)
        if unread is not None:
            remarks[unread] = f"{name} is not read: {_UNREAD[unread]}"
            continue
        # The names of checkpoints that were made from those of TensorFlow.
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            name = name.removesuffix(old) + new if name.endswith(f"LayerNorm{old}") else name
        kept[name] = stored
    return kept, [*remarks.values()]


def _without_copies(tensors: dict[str, StoredArray], owner: str) -> dict[str, StoredArray]:
    """Returns the tensors of tied logits without those that are stored twice."""
    # The bias has two names.
    if _BIAS not in tensors and _DECODER_BIAS in tensors:
        tensors = {**tensors, _BIAS: tensors[_DECODER_BIAS]}
    tensors = without_tied_head(tensors, _DECODER_BIAS, _BIAS, owner)
    return without_tied_head(tensors, _DECODER, _EMBEDDING, owner)


def _write(model: Model, dtype: str) -> WrittenModel:
    config = model.config
    kind, remarks = written_class(
        model,
        _NAME,
        {**_FIXED, "logits_bias": config.logits_transform},
        ("max_positions", "num_token_types", "next_sentence"),
        tagger=False,
    )
    if not config.num_token_types:
        raise no_counterpart(_NAME, config, "num_token_types")
    settings = {
        "architectures": [_NAME + kind],
        "model_type": "bert",
        **written_sizes(config),
        "hidden_act": written_activation(config, _NAME, ()),
        "max_position_embeddings": config.max_positions,
        # CTranslate2 asks for it, and transformers 5 has no default.
        "position_embedding_type": "absolute",
        "type_vocab_size": config.num_token_types,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_dropout_prob": float(config.dropout_rate),
        "attention_probs_dropout_prob": float(config.dropout_rate),
        "tie_word_embeddings": config.tied_logits,
        "is_encoder_decoder": False,
        "torch_dtype": dtype,
    }
    has_tokens = kind in (MASKED_LM, PRETRAINING)
    return WrittenModel(
        settings=settings | label_settings(model.classes, has_spans=True),
        skipped=frozenset() if has_tokens else frozenset({"logits_dense/kernel"}),
        prefix="" if kind == "Model" else "bert.",
        unprefixed=HEADS,
        remarks=tuple(remarks),
    )


def _id_fields(ids: SpecialIds) -> dict[str, Any]:
    return {"pad_token_id": ids.special.pad_id}


BERT_FAMILY = Family(
    fields=_FIELDS,
    read=_read,
    write=_write,
    tensor_name=_tensor_name,
    is_transposed=lambda name: name.endswith("/kernel"),
    roots=frozenset({"embeddings", "encoder", "pooler", "cls", "classifier", "qa_outputs"}),
    prefix="bert.",
    id_fields=_id_fields,
)

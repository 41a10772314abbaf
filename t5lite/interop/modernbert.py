"""ModernBERT of transformers: an encoder alone, with logits of tokens, or of classes of each token.

Source: huggingface/transformers@v5.24.0:src/transformers/models/modernbert.
"""

from typing import Any

from t5lite.core.errors import UserError
from t5lite.interop.class_labels import label_settings
from t5lite.interop.encoder_settings import (
    HEADS,
    MASKED_LM,
    class_of,
    encoder_model,
    logits_fields,
    written_class,
)
from t5lite.interop.family import Family, ReadModel, Settings, WrittenModel
from t5lite.interop.foreign import StoredArray
from t5lite.interop.generation_settings import SpecialIds
from t5lite.interop.modernbert_settings import (
    MODERNBERT_DEFAULTS,
    MODERNBERT_FIELDS,
    MODERNBERT_FIXED,
    MODERNBERT_NAME,
    modernbert_fields,
    written_fields,
)
from t5lite.interop.saved_class import saved_class
from t5lite.interop.settings_values import truth
from t5lite.interop.tied_logits import without_tied_head
from t5lite.models.config import T5Config
from t5lite.models.model import Model

_SUPPORTED = (
    "ModernBertForMaskedLM",
    "ModernBertForTokenClassification",
    "ModernBertForQuestionAnswering",
    "ModernBertModel",
)
_EMBEDDING = "embeddings.tok_embeddings.weight"
_DECODER = "decoder.weight"
_LAYER = "layers.{layer}."
_MODULES = {
    "token_embedder": "embeddings.tok_embeddings",
    "encoder/embedding_norm": "embeddings.norm",
    "encoder/encoder_norm": "final_norm",
    "encoder/layers/pre_attention_layer_norm": f"{_LAYER}attn_norm",
    "encoder/layers/attention/query": f"{_LAYER}attn.Wqkv",
    "encoder/layers/attention/key": f"{_LAYER}attn.Wqkv",
    "encoder/layers/attention/value": f"{_LAYER}attn.Wqkv",
    "encoder/layers/attention/out": f"{_LAYER}attn.Wo",
    "encoder/layers/pre_mlp_layer_norm": f"{_LAYER}mlp_norm",
    "encoder/layers/mlp/wi_0": f"{_LAYER}mlp.Wi",
    "encoder/layers/mlp/wi_1": f"{_LAYER}mlp.Wi",
    "encoder/layers/mlp/wo": f"{_LAYER}mlp.Wo",
    "logits_transform/dense": "head.dense",
    "logits_transform/norm": "head.norm",
    "logits_dense": "decoder",
    "classifier": "classifier",
}
# Which block of the rows of its tensor a map is, of how many.
_BLOCKS = {"query": (0, 3), "key": (1, 3), "value": (2, 3), "wi_0": (0, 2), "wi_1": (1, 2)}


def _tensor_name(model: Model, name: str) -> str:
    """Returns the tensor of a parameter, without `model.`, with `{layer}` if each layer has one."""
    if name == "logits_bias":
        return "decoder.bias"
    module, _, leaf = name.rpartition("/")
    return f"{_MODULES[module]}.{'bias' if leaf == 'bias' else 'weight'}"


def block_of(name: str) -> tuple[int, int]:
    """Returns which of how many equal blocks of its tensor's rows a parameter is.

    >>> block_of("encoder/layers/attention/value/kernel"), block_of("encoder/layers/mlp/wo/kernel")
    ((2, 3), (0, 1))
    """
    module = name.rpartition("/")[0]
    return _BLOCKS.get(module.rpartition("/")[2], (0, 1))


def _read(settings: Settings, tensors: dict[str, StoredArray], owner: str) -> ReadModel:
    where = f"{owner}/config.json: "
    kind = class_of(saved_class(settings, _SUPPORTED, owner), tensors, "head.")
    given = {**MODERNBERT_DEFAULTS, **settings}
    tied = truth(given, "tie_word_embeddings", where)
    bias = truth(given, "decoder_bias", where)
    try:
        config = T5Config(
            **modernbert_fields(settings, kind, where),
            **logits_fields(kind, tied=tied, transform=kind != "Model", bias=bias),
        )
    except UserError as error:
        raise UserError(f"{owner} does not describe a {MODERNBERT_NAME}: {error}") from error
    if kind == MASKED_LM and tied:
        tensors = without_tied_head(tensors, _DECODER, _EMBEDDING, owner)
    return ReadModel(model=encoder_model(settings, config, kind, tensors, owner), tensors=tensors)


def _write(model: Model, dtype: str) -> WrittenModel:
    config = model.config
    kind, remarks = written_class(
        model,
        MODERNBERT_NAME,
        MODERNBERT_FIXED,
        (
            "norm",
            "linear_bias",
            "logits_bias",
            "encoder_windows",
            "rotary_base",
            "rotary_base_windowed",
        ),
        tagger=True,
    )
    settings = {
        "architectures": [MODERNBERT_NAME + kind],
        "model_type": "modernbert",
        **written_fields(config),
        "decoder_bias": config.logits_bias,
        "tie_word_embeddings": config.tied_logits,
        "is_encoder_decoder": False,
        "torch_dtype": dtype,
    }
    return WrittenModel(
        settings=settings | label_settings(model.classes, has_spans=True),
        skipped=frozenset()
        if kind == MASKED_LM
        else frozenset({"logits_dense/kernel", "logits_bias"}),
        prefix="" if kind == "Model" else "model.",
        unprefixed=HEADS,
        remarks=tuple(remarks),
    )


def _id_fields(ids: SpecialIds) -> dict[str, Any]:
    special = ids.special
    ends = list(special.eos_ids)
    # All of them, because the usual ones of the class belong to the published vocabulary.
    return {
        "pad_token_id": special.pad_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "bos_token_id": special.bos_id,
        "cls_token_id": special.bos_id,
        "sep_token_id": ends[0],
    }


MODERNBERT_FAMILY = Family(
    fields=MODERNBERT_FIELDS,
    read=_read,
    write=_write,
    tensor_name=_tensor_name,
    is_transposed=lambda name: name.endswith("/kernel"),
    block_of=block_of,
    roots=frozenset({"embeddings", "layers", "final_norm", "head", "decoder", "classifier"}),
    prefix="model.",
    id_fields=_id_fields,
)

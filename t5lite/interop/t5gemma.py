"""T5Gemma of transformers: encoder-decoders of any two sizes, their encoders, and classifiers.

Source: huggingface/transformers@v5.24.0:src/transformers/models/t5gemma.
"""

import dataclasses
import functools
from typing import Any

from t5lite.core.errors import UserError
from t5lite.interop.class_labels import label_settings
from t5lite.interop.decoder_kinds import (
    GEMMA,
    GEMMA2_FORM,
    GEMMA_CAP,
    GEMMA_IDS,
    STACK_NEUTRAL_FIELDS,
    STACK_REQUIRED_VALUES,
)
from t5lite.interop.family import Family, ReadModel, Settings, WrittenModel
from t5lite.interop.field_groups import FieldGroups
from t5lite.interop.foreign import StoredArray
from t5lite.interop.generation_settings import bos_id_settings
from t5lite.interop.saved_class import saved_class
from t5lite.interop.settings_values import optional_number, size, truth
from t5lite.interop.stack_settings import stack_fields, stack_settings
from t5lite.interop.stack_tensors import is_transposed, layer_tensor
from t5lite.interop.t5gemma_classes import (
    GEMMA_CLASSIFIER,
    GEMMA_ENCODER,
    GEMMA_GENERATOR,
    GEMMA_TAGGER,
    SCORE_TENSORS,
    kind_to_write,
    read_scores,
    score_remarks,
)
from t5lite.interop.tied_logits import without_tied_head
from t5lite.interop.two_stacks import both_stacks, one_encoder
from t5lite.interop.writable import TWO_STACK_FIELDS, check_writable
from t5lite.models.architectures import EncoderDecoder, EncoderOnly
from t5lite.models.config import T5Config
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from t5lite.models.masks import Window
from t5lite.models.model import Model

_NAME = "T5Gemma"
_LOGITS = "decoder/logits_dense/kernel"
_LM_HEAD = "lm_head.out_proj.weight"
DECODER_EMBEDDING = "decoder.embed_tokens.weight"
# The tensors of the norms of sublayers. Self-attention has two names here.
GEMMA_NORMS = {
    f"{where}_{ours}_layer_norm": f"{where}_{theirs}_layernorm"
    for where in ("pre", "post")
    for ours, theirs in (
        ("attention", "self_attn"),
        ("self_attention", "self_attn"),
        ("cross_attention", "cross_attn"),
        ("mlp", "feedforward"),
    )
}
_STACK_FIELDS = FieldGroups(
    applied=GEMMA2_FORM.fields.union(
        {"vocab_size", GEMMA_CAP, "pad_token_id", "eos_token_id", "bos_token_id"}
    ),
    required={k: v for k, v in STACK_REQUIRED_VALUES.items() if k != "cross_attention_hidden_size"},
    # The width of cross-attention's keys is that of the encoder, whatever the file says.
    neutral=STACK_NEUTRAL_FIELDS.union(
        [
            "architectures",
            "model_type",
            "tie_word_embeddings",
            "dropout_rate",
            "cross_attention_hidden_size",
            "hidden_act",
        ]
    ),
)
_FIELDS = FieldGroups(
    applied=frozenset(
        [
            "architectures",
            "model_type",
            "tie_word_embeddings",
            "pad_token_id",
            "eos_token_id",
            "bos_token_id",
        ]
    ),
    required=STACK_REQUIRED_VALUES,
    # Each stack has a size of its vocabulary.
    neutral=STACK_NEUTRAL_FIELDS.union(["vocab_size", "dropout_rate", "classifier_dropout_rate"]),
    parts={"encoder": _STACK_FIELDS, "decoder": _STACK_FIELDS},
)


def _tensor_name(model: Model, name: str) -> str:
    """Returns the tensor of a parameter, without `model.`."""
    if name == _LOGITS:
        return _LM_HEAD
    if name in SCORE_TENSORS:
        return SCORE_TENSORS[name]
    if name == "token_embedder/embedding":
        stack = "decoder" if model.config.num_decoder_layers else "encoder"
        return f"{stack}.embed_tokens.weight"
    if name == "encoder_token_embedder/embedding":
        return "encoder.embed_tokens.weight"
    stack, _, inner = name.partition("/")
    if inner == f"{stack}_norm/scale":
        return f"{stack}.norm.weight"
    return f"{stack}.layers.{{layer}}." + layer_tensor(inner.removeprefix("layers/"), GEMMA_NORMS)


def _encoder_window(width: int) -> Window:
    # NOTE: DeepMind's own implementation has one token less to each side.
    return width, width


def _read(settings: Settings, tensors: dict[str, StoredArray], owner: str) -> ReadModel:
    where = f"{owner}/config.json: "
    stacks = {}
    for stack, window in (
        ("encoder", _encoder_window),
        ("decoder", lambda width: (width - 1, 0)),
    ):
        own = settings.get(stack) or {}
        path = f"{where}{stack}."
        vocab_size = size({**GEMMA2_FORM.defaults, **own}, "vocab_size", path)
        stacks[stack] = {
            **stack_fields(own, GEMMA2_FORM, path, window),
            "vocab_size": vocab_size,
        }
    kind = saved_class(
        settings, (GEMMA_GENERATOR, GEMMA_ENCODER, GEMMA_TAGGER, GEMMA_CLASSIFIER), owner
    )
    has_decoder = any(name.startswith("decoder.") for name in tensors)
    if kind is None and not has_decoder:
        kind = GEMMA_ENCODER
    classes = read_scores(kind, settings, tensors, owner)
    try:
        if kind == GEMMA_ENCODER or (classes is not None and not has_decoder):
            fields = one_encoder(stacks["encoder"])
            config = T5Config(**GEMMA, **fields, tied_logits=True, scale_tied_logits=False)
            return ReadModel(model=EncoderOnly(config, classes), tensors=tensors)
        tied = classes is not None or truth(
            {"tie_word_embeddings": True, **settings}, "tie_word_embeddings", where
        )
        decoder = {**GEMMA2_FORM.defaults, **(settings.get("decoder") or {})}
        config = T5Config(
            **GEMMA,
            **both_stacks(
                stacks["encoder"], stacks["decoder"], f"{where}encoder.", f"{where}decoder."
            ),
            separate_embeddings=True,
            tied_logits=tied,
            scale_tied_logits=not tied,
            logits_soft_cap=optional_number(decoder, GEMMA_CAP, f"{where}decoder."),
        )
        if classes is not None:
            config = dataclasses.replace(config, logits_soft_cap=None)
            model = EncoderDecoderClassifier(config, classes)
            return ReadModel(model=model, tensors=tensors, remarks=score_remarks(model))
    except UserError as error:
        raise UserError(f"{owner} does not describe a {_NAME}: {error}") from error
    if tied:
        tensors = without_tied_head(tensors, _LM_HEAD, DECODER_EMBEDDING, owner)
    return ReadModel(model=EncoderDecoder(config), tensors=tensors)


def _write(model: Model, dtype: str) -> WrittenModel:
    config = model.config
    has_decoder = config.num_decoder_layers > 0
    fixed = {
        **GEMMA,
        "scale_tied_logits": not config.tied_logits,
        "separate_embeddings": has_decoder,
    }
    check_writable(model, _NAME, fixed, TWO_STACK_FIELDS, has_classes=True)
    kind = kind_to_write(model, _NAME)
    common = {"torch_dtype": dtype, "tie_word_embeddings": config.tied_logits}
    settings: dict[str, Any] = {
        "architectures": [f"T5Gemma{kind}"],
        "model_type": "t5gemma",
        "is_encoder_decoder": has_decoder,
        **label_settings(model.classes),
        "vocab_size": config.vocab_size,
        **common,
        "encoder": {
            "model_type": "t5_gemma_module",
            **common,
            **stack_settings(
                config.encoder_config(),
                GEMMA2_FORM,
                "encoder",
                lambda pair: pair[0] if pair[0] == pair[1] else None,
                _NAME,
            ),
        },
    }
    if kind == GEMMA_ENCODER:
        remark = "the logits of tokens are not written: T5GemmaEncoderModel has none"
        return WrittenModel(
            settings=settings, skipped=frozenset({"logits_dense/kernel"}), remarks=(remark,)
        )
    if has_decoder:
        settings["decoder"] = {
            "model_type": "t5_gemma_module",
            **common,
            **stack_settings(config, GEMMA2_FORM, "decoder", lambda pair: pair[0] + 1, _NAME),
            GEMMA_CAP: config.logits_soft_cap,
        }
    unprefixed = frozenset({_LOGITS, *SCORE_TENSORS})
    return WrittenModel(
        settings=settings, prefix="model.", unprefixed=unprefixed, remarks=score_remarks(model)
    )


def flat_stack_ids(defaults: Settings, settings: Settings) -> Settings:
    """Returns the ids of the decoder, or of a lone encoder; the whole model's come first."""
    stack = settings.get("decoder") or settings.get("encoder") or {}
    own = {**defaults, **stack}
    ids = {
        name: own.get(name) if settings.get(name) is None else settings[name]
        for name in ("pad_token_id", "eos_token_id")
    }
    return {
        **settings,
        **ids,
        "vocab_size": own["vocab_size"],
        "decoder_start_token_id": own.get("bos_token_id"),
    }


T5GEMMA_FAMILY = Family(
    fields=_FIELDS,
    read=_read,
    write=_write,
    tensor_name=_tensor_name,
    is_transposed=is_transposed,
    roots=frozenset({"encoder", "decoder", "lm_head", "score"}),
    prefix="model.",
    usual_ids=GEMMA_IDS,
    flat_ids=functools.partial(flat_stack_ids, GEMMA2_FORM.defaults),
    id_fields=bos_id_settings,
    id_parts=frozenset({"encoder", "decoder"}),
)

"""T5Gemma 2 of transformers, without images: merged attention, one embedding, and classes.

The vision tower and its projector are kept as they are; see `kept.py`.

Source: huggingface/transformers@v5.24.0:src/transformers/models/t5gemma2.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from t5lite.core.errors import UserError
from t5lite.interop.class_labels import label_settings
from t5lite.interop.decoder_kinds import (
    GEMMA,
    GEMMA3_FORM,
    GEMMA_CAP,
    GEMMA_IDS,
    SCORE_CAP,
    STACK_NEUTRAL_FIELDS,
    STACK_REQUIRED_VALUES,
)
from t5lite.interop.family import Family, ReadModel, Settings, WrittenModel
from t5lite.interop.field_groups import COMMON_NEUTRAL_FIELDS, FieldGroups
from t5lite.interop.foreign import Kept, StoredArray
from t5lite.interop.generation_settings import bos_id_settings
from t5lite.interop.kept import stored_in_memory
from t5lite.interop.saved_class import saved_class
from t5lite.interop.settings_values import optional_number, size
from t5lite.interop.stack_settings import stack_fields, stack_settings
from t5lite.interop.stack_tensors import is_transposed, layer_tensor
from t5lite.interop.t5gemma import GEMMA_NORMS, flat_stack_ids
from t5lite.interop.t5gemma_classes import (
    GEMMA_CLASSIFIER,
    GEMMA_GENERATOR,
    GEMMA_TAGGER,
    SCORE_TENSORS,
    kind_to_write,
    read_scores,
    score_remarks,
)
from t5lite.interop.tied_logits import without_tied_head
from t5lite.interop.two_stacks import both_stacks
from t5lite.interop.writable import TWO_STACK_FIELDS, check_writable, no_counterpart
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.config import T5Config
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from t5lite.models.masks import Window
from t5lite.models.model import Model

_NAME = "T5Gemma 2"
_END_OF_IMAGE = "encoder.embed_tokens.eoi_embedding"
_EMBEDDING = "encoder.embed_tokens.weight"
# Parts of a model with images; the classes need them.
VISION = ("vision_tower.", "multi_modal_projector.")
# Other names of the embedding, which files that other programs write may hold.
_ALIASES = ("decoder.embed_tokens.weight", "lm_head.out_proj.weight")
_FIXED = {
    **GEMMA,
    "qk_norm": True,
    "merged_attention": True,
    "tied_logits": True,
    "scale_tied_logits": False,
}
_IDS = frozenset({"pad_token_id", "eos_token_id", "bos_token_id"})
_OF_TRAINING = frozenset({"dropout_rate", "attention_dropout", "classifier_dropout_rate"})
_STACK_FIELDS = FieldGroups(
    applied=GEMMA3_FORM.fields | _IDS | {"vocab_size", GEMMA_CAP, "sliding_window_pattern"},
    # transformers stores the cap of scores and never applies it.
    required={**STACK_REQUIRED_VALUES, SCORE_CAP: (None,)},
    neutral=STACK_NEUTRAL_FIELDS
    | _OF_TRAINING
    | {"architectures", "model_type", "tie_word_embeddings", "hidden_act"},
)
_ENCODER_FIELDS = FieldGroups(
    applied=frozenset({"eoi_token_index"}),
    neutral=COMMON_NEUTRAL_FIELDS
    | _IDS
    | _OF_TRAINING
    | {
        "architectures",
        "model_type",
        "tie_word_embeddings",
        "initializer_range",
        "vocab_size",
        "vision_config",
        "boi_token_index",
        "image_token_index",
        "mm_tokens_per_image",
    },
    parts={"text_config": _STACK_FIELDS},
)
_FIELDS = FieldGroups(
    applied=_IDS | {"architectures", "model_type"},
    required={**STACK_REQUIRED_VALUES, "tie_word_embeddings": (True, None)},
    # transformers takes the encoder's index of the end of an image, and the decoder's vocabulary.
    neutral=STACK_NEUTRAL_FIELDS
    | _OF_TRAINING
    | {"vocab_size", "eoi_token_index", "image_token_index"},
    parts={"encoder": _ENCODER_FIELDS, "decoder": _STACK_FIELDS},
)
# The smallest vision tower that the classes accept.
_NO_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1,
    "intermediate_size": 1,
    "num_hidden_layers": 0,
    "num_attention_heads": 1,
    "image_size": 1,
    "patch_size": 1,
    "vision_use_head": False,
}


def _tensor_name(model: Model, name: str) -> str:
    """Returns the tensor of a parameter, without `model.`."""
    if name == "token_embedder/embedding":
        return _EMBEDDING
    if name == "token_embedder/end_of_image":
        return _END_OF_IMAGE
    if name in SCORE_TENSORS:
        return SCORE_TENSORS[name]
    stack, _, inner = name.partition("/")
    if inner == f"{stack}_norm/scale":
        return f"{stack}.norm.weight"
    return f"{stack}.layers.{{layer}}." + layer_tensor(inner.removeprefix("layers/"), GEMMA_NORMS)


def _encoder_window(width: int) -> Window:
    return (width + 1) // 2 - 1, width // 2


def _encoder_width(window: Window) -> int | None:
    width = sum(window) + 1
    return width if _encoder_window(width) == window else None


def _read(settings: Settings, tensors: dict[str, StoredArray], owner: str) -> ReadModel:
    kind = saved_class(settings, (GEMMA_GENERATOR, GEMMA_TAGGER, GEMMA_CLASSIFIER), owner)
    where = f"{owner}/config.json: "
    outer = settings.get("encoder") or {}
    own = {
        "encoder.text_config.": {**GEMMA3_FORM.defaults, **(outer.get("text_config") or {})},
        "decoder.": {**GEMMA3_FORM.defaults, **(settings.get("decoder") or {})},
    }
    encoder, decoder = (
        {
            **stack_fields(stack, GEMMA3_FORM, where + path, window),
            "vocab_size": size(stack, "vocab_size", where + path),
        }
        for (path, stack), window in zip(
            own.items(), (_encoder_window, lambda width: (width - 1, 0)), strict=True
        )
    )
    end_of_image = size(
        {"eoi_token_index": 256_000, **outer}, "eoi_token_index", f"{where}encoder.", least=0
    )
    # The class has the vector in any case; no token may have it.
    token = end_of_image if end_of_image < encoder["vocab_size"] else None
    if token is None:
        tensors.pop(_END_OF_IMAGE, None)
    cap = optional_number(own["decoder."], GEMMA_CAP, f"{where}decoder.")
    fields = both_stacks(encoder, decoder, f"{where}encoder.text_config.", f"{where}decoder.")
    try:
        config = T5Config(**_FIXED, **fields, logits_soft_cap=cap, end_of_image_token=token)
    except UserError as error:
        raise UserError(f"{owner} does not describe a {_NAME}: {error}") from error
    for alias in _ALIASES:
        tensors = without_tied_head(tensors, alias, _EMBEDDING, owner)
    classes = read_scores(kind, settings, tensors, owner)
    if classes is None:
        return ReadModel(model=EncoderDecoder(config), tensors=tensors)
    model = EncoderDecoderClassifier(dataclasses.replace(config, logits_soft_cap=None), classes)
    return ReadModel(model=model, tensors=tensors, remarks=score_remarks(model))


def _write(model: Model, dtype: str) -> WrittenModel:
    config = model.config
    expressed = TWO_STACK_FIELDS | {"end_of_image_token"}
    check_writable(model, _NAME, _FIXED, expressed, has_classes=True)
    if not config.num_decoder_layers:
        raise no_counterpart(_NAME, config, "num_decoder_layers")
    kind = kind_to_write(model, _NAME)
    common = {"torch_dtype": dtype, "tie_word_embeddings": True}
    encoder = stack_settings(config.encoder_config(), GEMMA3_FORM, "encoder", _encoder_width, _NAME)
    decoder = stack_settings(config, GEMMA3_FORM, "decoder", lambda pair: pair[0] + 1, _NAME)
    # Without such a token no id may be the one whose embedding the class replaces.
    end = config.end_of_image_token
    end = config.vocab_size if end is None else end
    settings: dict[str, Any] = {
        "architectures": [f"T5Gemma2{kind}"],
        "model_type": "t5gemma2",
        **label_settings(model.classes),
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        **common,
        "eoi_token_index": end,
        "encoder": {
            "model_type": "t5gemma2_encoder",
            **common,
            "eoi_token_index": end,
            "text_config": {"model_type": "t5gemma2_text", **common, **encoder},
        },
        "decoder": {
            "model_type": "t5gemma2_decoder",
            **common,
            **decoder,
            GEMMA_CAP: config.logits_soft_cap,
        },
    }
    return WrittenModel(
        settings=settings,
        prefix="model.",
        unprefixed=frozenset(SCORE_TENSORS),
        usual_kept=_no_vision(config),
        remarks=score_remarks(model),
    )


def _no_vision(config: T5Config) -> Kept:
    """Returns the smallest vision tower, of zeros, and what else the class needs."""
    width = config.embed_dim
    shapes = {
        "vision_tower.embeddings.patch_embedding.weight": (1, 3, 1, 1),
        "vision_tower.embeddings.patch_embedding.bias": (1,),
        "vision_tower.embeddings.position_embedding.weight": (1, 1),
        "vision_tower.post_layernorm.weight": (1,),
        "vision_tower.post_layernorm.bias": (1,),
        "multi_modal_projector.mm_input_projection_weight": (1, width),
        "multi_modal_projector.mm_soft_emb_norm.weight": (1,),
    }
    if config.end_of_image_token is None:
        shapes[_END_OF_IMAGE.removeprefix("encoder.")] = (width,)
    zeros = {
        f"model.encoder.{name}": stored_in_memory(np.zeros(shape, np.float32))
        for name, shape in shapes.items()
    }
    return Kept(
        tensors=zeros,
        settings={"encoder": {"vision_config": _NO_VISION, "mm_tokens_per_image": 1}},
    )


def _keep(settings: Settings, aside: dict[str, StoredArray]) -> Kept | None:
    """Returns the parts for images, and all settings but those of text."""
    if not aside:
        return None
    outer = settings.get("encoder") or {}
    kept: dict[str, Any] = {
        "encoder": {name: value for name, value in outer.items() if name != "text_config"}
    }
    if "image_token_index" in settings:
        kept["image_token_index"] = settings["image_token_index"]
    tensors = {f"model.encoder.{name}": stored for name, stored in aside.items()}
    return Kept(tensors=tensors, settings=kept)


T5GEMMA2_FAMILY = Family(
    fields=_FIELDS,
    read=_read,
    write=_write,
    tensor_name=_tensor_name,
    is_transposed=is_transposed,
    roots=frozenset({"encoder", "decoder", "lm_head", "score"}),
    prefix="model.",
    aside=VISION,
    keep=_keep,
    usual_ids=GEMMA_IDS,
    flat_ids=functools.partial(flat_stack_ids, GEMMA3_FORM.defaults),
    id_fields=bos_id_settings,
    id_parts=frozenset({"decoder"}),
)

"""Gemma 2, Gemma 3 (text), Llama and Qwen 3 of transformers: decoder-only models.

Source: huggingface/transformers@v5.24.0:src/transformers/models/{gemma2,gemma3,llama,qwen3}.
"""

import dataclasses
import functools

from t5lite.core.errors import UserError
from t5lite.interop.decoder_kinds import (
    DECODER_KINDS,
    GEMMA3,
    STACK_NEUTRAL_FIELDS,
    STACK_REQUIRED_VALUES,
    DecoderKind,
    kind_fields,
)
from t5lite.interop.family import Family, ReadModel, Settings, WrittenModel
from t5lite.interop.field_groups import FieldGroups
from t5lite.interop.foreign import StoredArray
from t5lite.interop.generation_settings import bos_id_settings
from t5lite.interop.saved_class import saved_class
from t5lite.interop.settings_values import optional_number, size, truth
from t5lite.interop.stack_settings import SLIDING, stack_fields, stack_settings, used_rotary
from t5lite.interop.stack_tensors import is_transposed, layer_tensor
from t5lite.interop.tied_logits import without_tied_head
from t5lite.interop.writable import DECODER_FIELDS, check_writable
from t5lite.models.architectures import DecoderOnly
from t5lite.models.config import T5Config
from t5lite.models.model import Model

_EMBEDDING = "token_embedder/embedding"
_LOGITS = "decoder/logits_dense/kernel"
QUERY = "decoder/layers/self_attention/query/kernel"
_CLASS = "ForCausalLM"


def _tensor_name(kind: DecoderKind, model: Model, name: str) -> str:
    whole = {
        _EMBEDDING: "embed_tokens.weight",
        _LOGITS: "lm_head.weight",
        "decoder/decoder_norm/scale": "norm.weight",
    }
    if name in whole:
        return whole[name]
    return "layers.{layer}." + layer_tensor(name.removeprefix("decoder/layers/"), kind.norms)


def _read(
    kind: DecoderKind, settings: Settings, tensors: dict[str, StoredArray], owner: str
) -> ReadModel:
    saved_class(settings, (_CLASS,), owner)
    where = f"{owner}/config.json: "
    tied = truth({**kind.form.defaults, **settings}, "tie_word_embeddings", where)
    return _read_decoder(kind, settings, tensors, where, tied=tied)


def _read_decoder(
    kind: DecoderKind,
    settings: Settings,
    tensors: dict[str, StoredArray],
    where: str,
    *,
    tied: bool,
) -> ReadModel:
    given = {**kind.form.defaults, **settings}
    if "use_sliding_window" in given and not truth(given, "use_sliding_window", where):
        given["sliding_window"] = None
    # In a prefix, which these families do not have, a window counts in both directions.
    fields = stack_fields(given, kind.form, where, lambda width: (width - 1, width - 1))
    layers = fields.pop("num_layers")
    windows = fields.pop("windows")
    if fields["num_kv_heads"] == fields["num_heads"]:
        fields["num_kv_heads"] = None
    if tied:
        tensors = without_tied_head(tensors, "lm_head.weight", "embed_tokens.weight", where)
    try:
        config = T5Config(
            **kind.fixed,
            **used_rotary(fields, windows),
            vocab_size=size(given, "vocab_size", where),
            num_decoder_layers=layers,
            decoder_windows=windows,
            tied_logits=tied,
            scale_tied_logits=not tied,
            logits_soft_cap=optional_number(given, kind.cap, where),
        )
    except UserError as error:
        raise UserError(f"{where}does not describe {kind.name}: {error}") from error
    return ReadModel(model=DecoderOnly(config), tensors=tensors)


def _write(kind: DecoderKind, model: Model, dtype: str) -> WrittenModel:
    config = model.config
    fixed = {**kind.fixed, "scale_tied_logits": not config.tied_logits}
    expressed = DECODER_FIELDS | ({"logits_soft_cap"} if kind.cap else set())
    check_writable(model, kind.name, fixed, expressed)
    factors: dict[str, float] = {}
    remarks = []
    usual_scale = config.head_dim**-0.5
    if kind.form.scale is None and not config.qk_norm and config.attention_scale != usual_scale:
        factors[QUERY] = config.attention_scale / usual_scale
        remarks.append(
            f"the query kernels are multiplied by {factors[QUERY]:.6g}, because {kind.name} scales "
            f"scores by 1 / sqrt(head_dim) and the model by {config.attention_scale:.6g}"
        )
        config = dataclasses.replace(config, attention_scale=usual_scale)
    stack = stack_settings(config, kind.form, "decoder", lambda pair: pair[0] + 1, kind.name)
    settings = {
        "architectures": [kind.prefix + _CLASS],
        "model_type": kind.model_type,
        **stack,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_logits,
        "is_encoder_decoder": False,
        "torch_dtype": dtype,
    }
    if kind.cap is not None:
        settings[kind.cap] = config.logits_soft_cap
    if "use_sliding_window" in kind.form.defaults:
        settings["use_sliding_window"] = SLIDING in stack["layer_types"]
    return WrittenModel(
        settings=settings,
        factors=factors,
        prefix="model.",
        unprefixed=frozenset({_LOGITS}),
        remarks=tuple(remarks),
    )


def _flat_ids(kind: DecoderKind, settings: Settings) -> Settings:
    return {
        "vocab_size": kind.form.defaults["vocab_size"],
        **settings,
        "decoder_start_token_id": settings.get("bos_token_id"),
    }


def _read_text(settings: Settings, tensors: dict[str, StoredArray], owner: str) -> ReadModel:
    saved_class(settings, ("ForConditionalGeneration",), owner)
    where = f"{owner}/config.json: "
    tied = truth({"tie_word_embeddings": True, **settings}, "tie_word_embeddings", where)
    text = settings.get("text_config") or {}
    return _read_decoder(GEMMA3, text, tensors, f"{where}text_config.", tied=tied)


def _flat_text_ids(settings: Settings) -> Settings:
    text = settings.get("text_config") or {}
    own = {name: value for name, value in settings.items() if value is not None}
    return _flat_ids(GEMMA3, {**text, **own})


def _decoder_family(kind: DecoderKind) -> Family:
    return Family(
        fields=kind_fields(kind),
        read=functools.partial(_read, kind),
        write=functools.partial(_write, kind),
        tensor_name=functools.partial(_tensor_name, kind),
        is_transposed=is_transposed,
        roots=frozenset({"embed_tokens", "layers", "norm", "lm_head"}),
        prefix="model.",
        usual_ids=kind.usual_ids,
        flat_ids=functools.partial(_flat_ids, kind),
        id_fields=bos_id_settings,
    )


# Gemma 3 with images: the part that reads and writes text. It is written as Gemma 3 without them.
_GEMMA3_IMAGES = dataclasses.replace(
    _decoder_family(GEMMA3),
    fields=FieldGroups(
        applied=frozenset(
            ["architectures", "model_type", "tie_word_embeddings", "eos_token_id", "pad_token_id"]
        ),
        required=STACK_REQUIRED_VALUES,
        neutral=(STACK_NEUTRAL_FIELDS - GEMMA3.neutral).union(
            ["vision_config", "mm_tokens_per_image", "bos_token_id"],
            [f"{name}_token_index" for name in ("boi", "eoi", "image")],
        ),
        parts={"text_config": kind_fields(GEMMA3)},
    ),
    read=_read_text,
    prefix="language_model.model.",
    aside=("vision_tower.", "multi_modal_projector."),
    flat_ids=_flat_text_ids,
)

DECODER_FAMILIES = {
    **{kind.model_type: _decoder_family(kind) for kind in DECODER_KINDS},
    "gemma3": _GEMMA3_IMAGES,
}


def decoder_to_write(model: Model) -> Family:
    """Returns the family of a decoder-only model: the first with its parts, or Llama."""
    for kind in DECODER_KINDS:
        if all(getattr(model.config, name) == value for name, value in kind.fixed.items()):
            return DECODER_FAMILIES[kind.model_type]
    return DECODER_FAMILIES["llama"]

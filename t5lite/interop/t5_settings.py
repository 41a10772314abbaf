"""config.json of transformers' T5, mT5, umT5 and LongT5, both ways.

Every field of it is applied, must have the one value that t5lite computes, or has no effect on
logits and loss. A field in none of these groups is named in a remark.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError, check_choice
from t5lite.interop.settings_values import SIZE_LIMIT
from t5lite.interop.t5_fields import (
    DEFAULT_NUMBERS,
    OTHER_SIZE_NAMES,
    SIZE_FIELDS,
)
from t5lite.models.config import T5Config
from t5lite.models.model import Model

T5_MODEL_TYPES = ("t5", "mt5", "umt5", "longt5")
# transformers' names of activations, and ours.
TRANSFORMERS_ACTIVATIONS = {
    "relu": "relu",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "silu": "silu",
    "swish": "silu",
    "linear": "linear",
}
# The names that are written, by ours.
_WRITTEN_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_new", "gelu_exact": "gelu", "silu": "silu"}
_ENCODER_ATTENTION = {"local": "local", "transient-global": "transient_global"}
# Fields of T5Config that config.json expresses, and those that belong to a run. Without experts and
# rotary positions, which are rejected, capacity_factor and rotary_base have no effect.
_WRITTEN_FIELDS = frozenset(
    [
        "vocab_size",
        "embed_dim",
        "num_heads",
        "head_dim",
        "mlp_dim",
        "num_encoder_layers",
        "num_decoder_layers",
        "mlp_activations",
        "norm_epsilon",
        "positions",
        "num_buckets",
        "max_distance",
        "encoder_attention",
        "local_radius",
        "global_block_size",
        "tied_logits",
        "start_token",
    ]
)
_RUN_FIELDS = frozenset(
    ["dropout_rate", "dtype", "remat", "scan_unroll", "attention", "capacity_factor", "rotary_base"]
)


def t5_config(settings: Mapping[str, Any], owner: str) -> T5Config:
    """Returns the sizes and choices of a config.json, except those of logits.

    Raises:
        UserError: if a size is missing or not a whole number, or a field asks for arithmetic that
            t5lite does not have.
    """
    settings = _with_usual_names(settings, owner)
    for name in SIZE_FIELDS:
        if type(settings.get(name)) is not int or not 1 <= settings[name] < SIZE_LIMIT:
            got = settings.get(name, "none")
            raise UserError(
                f"{owner} must have {name}, a whole number > 0 and under {SIZE_LIMIT:,}, got "
                f"{got!r}"
            )
    decoder_layers = settings.get("num_decoder_layers")
    if decoder_layers is None:
        decoder_layers = settings["num_layers"]
    if type(decoder_layers) is not int or not 0 <= decoder_layers < SIZE_LIMIT:
        raise UserError(
            f"{owner}: num_decoder_layers must be a whole number >= 0, got {decoder_layers!r:.80}"
        )
    family = settings["model_type"]
    attention = "full"
    if family == "longt5":
        kind = settings.get("encoder_attention_type", "local")
        check_choice(f"{owner}: encoder_attention_type", kind, _ENCODER_ATTENTION)
        attention = _ENCODER_ATTENTION[kind]
    numbers = {name: settings.get(name, default) for name, default in DEFAULT_NUMBERS.items()}
    for name, value in numbers.items():
        if type(value) not in (int, type(DEFAULT_NUMBERS[name])) or not 0 < value < SIZE_LIMIT:
            raise UserError(f"{owner} must have {name}, a number > 0, got {value!r}")
    try:
        return T5Config(
            vocab_size=settings["vocab_size"],
            embed_dim=settings["d_model"],
            num_heads=settings["num_heads"],
            head_dim=settings["d_kv"],
            mlp_dim=settings["d_ff"],
            num_encoder_layers=settings["num_layers"],
            num_decoder_layers=decoder_layers,
            mlp_activations=_activations(settings, owner),
            norm_epsilon=float(numbers["layer_norm_epsilon"]),
            positions="layer_bias" if family == "umt5" else "shared_bias",
            num_buckets=numbers["relative_attention_num_buckets"],
            max_distance=numbers["relative_attention_max_distance"],
            encoder_attention=attention,
            local_radius=numbers["local_radius"],
            global_block_size=numbers["global_block_size"],
        )
    except UserError as error:
        raise UserError(f"{owner} does not describe a T5: {error}") from error


def _with_usual_names(settings: Mapping[str, Any], owner: str) -> dict[str, Any]:
    usual = dict(settings)
    for other, name in OTHER_SIZE_NAMES.items():
        if other not in usual:
            continue
        value = usual.pop(other)
        if usual.setdefault(name, value) != value:
            raise UserError(
                f"{owner}: {other} and {name} are the same size, got {value!r} and {usual[name]!r}"
            )
    return usual


def _activations(settings: Mapping[str, Any], owner: str) -> tuple[str, ...]:
    """Returns the activations of the feed-forward layers.

    `dense_act_fn` and `is_gated_act` are saved by transformers and override what
    `feed_forward_proj` implies.
    """
    usual = "gated-gelu" if settings["model_type"] in ("mt5", "umt5") else "relu"
    proj = settings.get("feed_forward_proj", usual)
    gate, _, implied = str(proj).rpartition("-")
    if gate not in ("", "gated"):
        gate = ""
        implied = str(proj)
    implied = "gelu_new" if proj == "gated-gelu" else implied
    name = settings.get("dense_act_fn", implied)
    field = "dense_act_fn" if name != implied else "feed_forward_proj"
    if not isinstance(name, str) or name not in TRANSFORMERS_ACTIVATIONS:
        forms = [*TRANSFORMERS_ACTIVATIONS]
        if field == "feed_forward_proj":
            forms += [f"gated-{form}" for form in forms]
        check_choice(f"{owner}: {field}", proj if field == "feed_forward_proj" else name, forms)
    is_gated = settings.get("is_gated_act", gate == "gated")
    if not isinstance(is_gated, bool):
        raise UserError(f"{owner}: is_gated_act must be true or false, got {is_gated!r}")
    first = TRANSFORMERS_ACTIVATIONS[name]
    return (first, "linear") if is_gated else (first,)


def logits_scale(settings: Mapping[str, Any], owner: str) -> float:
    """Returns the factor of the decoder's output before the logits.

    It is T5 1.0's 1 / sqrt(d_model), or 1. mT5 never scales. The others do by
    `tie_word_embeddings`, which transformers 5 saves as true for all of them; it then saves the
    factor as `scale_decoder_outputs`.

    Raises:
        UserError: if one of these fields is neither true nor false.
    """
    for name in ("tie_word_embeddings", "scale_decoder_outputs"):
        if not isinstance(settings.get(name), bool | None):
            raise UserError(f"{owner}: {name} must be true or false, got {settings[name]!r:.80}")
    tied = settings.get("tie_word_embeddings") is not False
    scaled = settings.get("scale_decoder_outputs")
    is_scaled = (tied if scaled is None else scaled) and settings["model_type"] != "mt5"
    width = settings.get("d_model", settings.get("hidden_size"))
    return 1.0 / math.sqrt(width) if is_scaled else 1.0


def settings_of(model: Model, dtype: str) -> tuple[dict[str, Any], list[str]]:
    """Returns config.json for a model, and remarks. Special ids are added by the caller.

    Raises:
        UserError: for a model that transformers has no class for.
    """
    config = model.config
    remarks = []
    _check_writable(model)
    classes = model.classes
    family = "umt5" if config.positions == "layer_bias" else "t5"
    family = "longt5" if config.encoder_attention != "full" else family
    prefix = {"t5": "T5", "umt5": "UMT5", "longt5": "LongT5"}[family]
    kind = "ForConditionalGeneration"
    if classes is not None:
        kind = "ForTokenClassification" if classes.per_token else "ForSequenceClassification"
    elif not model.has_decoder:
        kind = "EncoderModel"
        remarks.append("the logits of tokens are not written: T5EncoderModel has none")
    is_gated = len(config.mlp_activations) == 2
    first = config.mlp_activations[0]
    written = _WRITTEN_ACTIVATIONS[first]
    proj = {"gelu": "gelu", "gelu_exact": "gelu"}.get(first, first) if is_gated else written
    settings: dict[str, Any] = {
        "architectures": [prefix + kind],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "d_model": config.embed_dim,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers or config.num_encoder_layers,
        "feed_forward_proj": f"gated-{proj}" if is_gated else proj,
        "dense_act_fn": written,
        "is_gated_act": is_gated,
        "layer_norm_epsilon": config.norm_epsilon,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": float(config.dropout_rate),
        "is_encoder_decoder": config.num_decoder_layers > 0,
        # umT5's class scales whatever this is; `t5_family` multiplies the head instead.
        "tie_word_embeddings": config.tied_logits or family == "umt5",
        "torch_dtype": dtype,
    }
    if family == "longt5":
        settings |= {
            "encoder_attention_type": config.encoder_attention.replace("_", "-"),
            "local_radius": config.local_radius,
            "global_block_size": config.global_block_size,
        }
    return settings, remarks


def _check_writable(model: Model) -> None:
    config = model.config
    classes = model.classes
    is_long = config.encoder_attention != "full"
    first, *rest = config.mlp_activations
    is_known = first in _WRITTEN_ACTIVATIONS and rest in ([], ["linear"])
    problems = [
        (not model.has_encoder, type(model).__name__),
        (not is_known, f"T5Config.mlp_activations {config.mlp_activations}"),
        (config.positions == "rotary", "rotary T5Config.positions"),
        *_class_problems(model),
        (classes is not None and is_long, f"Classes and {config.encoder_attention!r} attention"),
        (is_long and config.positions == "layer_bias", "'layer_bias' with LongT5's attention"),
    ]
    for field in dataclasses.fields(T5Config):
        value = getattr(config, field.name)
        usual = (field.default, config.num_heads if field.name == "num_kv_heads" else field.default)
        if field.name not in _WRITTEN_FIELDS | _RUN_FIELDS and value not in usual:
            problems.append((True, f"T5Config.{field.name} {value}"))
    for is_problem, what in problems:
        if is_problem:
            raise UserError(
                f"--to=huggingface: the T5 family of transformers has no counterpart of {what}; "
                "keep the checkpoint in t5lite's format"
            )


def _class_problems(model: Model) -> list[tuple[bool, str]]:
    """Returns what the classes of transformers with a classifier do not have."""
    classes = model.classes
    if classes is None:
        return []
    has_decoder = model.config.num_decoder_layers > 0
    like_theirs = classes.pooling == "last" and classes.has_dense
    kind = "an encoder-decoder" if has_decoder else "an encoder"
    return [
        (classes.per_token == has_decoder, f"Classes.per_token {classes.per_token} of {kind}"),
        (classes.per_token and classes.has_dense, "Classes.has_dense with per_token"),
        (
            has_decoder and not like_theirs,
            f"Classes.pooling {classes.pooling!r} with has_dense {classes.has_dense}",
        ),
    ]

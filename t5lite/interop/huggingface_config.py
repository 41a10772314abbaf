"""config.json of Hugging Face's T5 family, and T5Config."""

import math
from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError, check_choice
from t5lite.models.architectures import DecoderOnly, EncoderOnly, Model
from t5lite.models.config import T5Config

FAMILIES = ("t5", "mt5", "umt5", "longt5")
# Our names of activations and those that stand in `feed_forward_proj`.
FEED_FORWARD = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
    "gated-relu": ("relu", "linear"),
}
# What the classes take where the file says nothing.
_NUMBERS: dict[str, int | float] = {
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "local_radius": 127,
    "global_block_size": 16,
}
# No size of a model is beyond it; arithmetic with those that are would go on for ever.
LIMIT = 10_000_000
_SIZES = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers")
_ENCODER_ATTENTION = {"local": "local", "transient-global": "transient_global"}


def config_of(settings: Mapping[str, Any], owner: str) -> T5Config:
    """Returns the sizes and choices in a config.json; those of logits are `logits_scale`'s.

    Raises:
        UserError: where a size is missing or no whole number, or a choice is one T5 has not.
    """
    family = settings.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"{owner} must have a model_type of {', '.join(FAMILIES)}, got {family!r}")
    for name in _SIZES:
        if type(settings.get(name)) is not int or not 1 <= settings[name] < LIMIT:
            got = settings.get(name, "none")
            raise UserError(
                f"{owner} must have {name}, a whole number > 0 and under {LIMIT:,}, got {got!r}"
            )
    # What the classes of each family take where the file says nothing.
    proj = settings.get("feed_forward_proj", "gated-gelu" if family in ("mt5", "umt5") else "relu")
    check_choice(f"{owner}: feed_forward_proj", proj, FEED_FORWARD)
    attention = "full"
    if family == "longt5":
        kind = settings.get("encoder_attention_type", "local")
        check_choice(f"{owner}: encoder_attention_type", kind, _ENCODER_ATTENTION)
        attention = _ENCODER_ATTENTION[kind]
    decoder_layers = settings.get("num_decoder_layers")
    numbers = {name: settings.get(name, default) for name, default in _NUMBERS.items()}
    for name, value in numbers.items():
        if type(value) not in (int, type(_NUMBERS[name])) or not 0 < value < LIMIT:
            raise UserError(f"{owner} must have {name}, a number > 0, got {value!r}")
    try:
        return T5Config(
            vocab_size=settings["vocab_size"],
            embed_dim=settings["d_model"],
            num_heads=settings["num_heads"],
            head_dim=settings["d_kv"],
            mlp_dim=settings["d_ff"],
            num_encoder_layers=settings["num_layers"],
            num_decoder_layers=settings["num_layers"] if decoder_layers is None else decoder_layers,
            mlp_activations=FEED_FORWARD[proj],
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


def logits_scale(settings: Mapping[str, Any]) -> float:
    """Returns what a model of these settings multiplies its last vectors by before the logits.

    T5 1.0's 1 / sqrt(d_model), or 1. mT5 never scales. Others do by `tie_word_embeddings`, which
    transformers 5 saves as true for all and, for T5 and LongT5, replaces by
    `scale_decoder_outputs`.
    """
    tied = settings.get("tie_word_embeddings") is not False
    is_scaled = settings.get("scale_decoder_outputs", tied) and settings["model_type"] != "mt5"
    return 1.0 / math.sqrt(settings["d_model"]) if is_scaled else 1.0


def config_to_json(model: Model, dtype: str) -> tuple[dict[str, Any], list[str]]:
    """Returns config.json for a model, and remarks.

    Raises:
        UserError: for a model that `transformers` has no class for.
    """
    config, remarks = model.config, []
    proj = next((p for p, names in FEED_FORWARD.items() if names == config.mlp_activations), None)
    classes = model.classes if isinstance(model, EncoderOnly) else None
    pooled = classes is not None and not classes.per_token
    is_long = config.encoder_attention != "full"
    for unknown, what in (
        (isinstance(model, DecoderOnly), "DecoderOnly"),
        (proj is None, f"T5Config.mlp_activations {config.mlp_activations}"),
        (config.positions == "rotary", "rotary T5Config.positions"),
        (config.kv_heads != config.num_heads, f"T5Config.num_kv_heads {config.num_kv_heads}"),
        (config.num_experts is not None, f"T5Config.num_experts {config.num_experts}"),
        (pooled, "Classes.per_token False"),
        (classes is not None and is_long, f"Classes and {config.encoder_attention!r} attention"),
    ):
        if unknown:
            raise UserError(
                f"--to=huggingface: its T5 family has nothing for {what}; keep it for t5lite"
            )
    family = "umt5" if config.positions == "layer_bias" else "t5"
    family = "longt5" if is_long else family
    prefix = {"t5": "T5", "umt5": "UMT5", "longt5": "LongT5"}[family]
    kind = "ForConditionalGeneration"
    if isinstance(model, EncoderOnly):
        kind = "EncoderModel" if classes is None else "ForTokenClassification"
        if classes is None:
            remarks.append("logits of tokens are left out: T5EncoderModel has none")
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
        "feed_forward_proj": proj,
        "layer_norm_epsilon": config.norm_epsilon,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": float(config.dropout_rate),
        "is_encoder_decoder": not isinstance(model, EncoderOnly),
        # umT5's class scales whatever stands here; see `huggingface.write`.
        "tie_word_embeddings": config.tied_logits or family == "umt5",
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }
    if family == "longt5":
        settings |= {
            "encoder_attention_type": config.encoder_attention.replace("_", "-"),
            "local_radius": config.local_radius,
            "global_block_size": config.global_block_size,
        }
    if classes is not None:
        settings["num_labels"] = classes.count
    return settings, remarks

"""config.json of transformers' ModernBERT, both ways.

Source: huggingface/transformers@v5.24.0:src/transformers/models/modernbert.
"""

from collections.abc import Sequence
from typing import Any

from t5lite.core.errors import UserError, check_choice
from t5lite.interop.encoder_settings import (
    ENCODER_SIZE_FIELDS,
    activation,
    size_fields,
    written_activation,
    written_sizes,
)
from t5lite.interop.family import Settings
from t5lite.interop.field_groups import (
    COMMON_NEUTRAL_FIELDS,
    COMMON_REQUIRED_VALUES,
    FieldGroups,
)
from t5lite.interop.rotary_settings import rope_settings_by_kind, rotary_fields_by_kind
from t5lite.interop.settings_values import number, size, truth
from t5lite.interop.writable import no_counterpart
from t5lite.models.config import T5Config
from t5lite.models.masks import Window

MODERNBERT_NAME = "ModernBert"
_FULL = "full_attention"
_SLIDING = "sliding_attention"
_BIASES = ("attention_bias", "mlp_bias", "classifier_bias")
# The values that the classes take if the file has none.
MODERNBERT_DEFAULTS: dict[str, Any] = {
    "norm_eps": 1e-5,
    "norm_bias": False,
    "decoder_bias": True,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    **dict.fromkeys(_BIASES, False),
}
MODERNBERT_FIXED: dict[str, Any] = {"embedding_norm": True, "positions": "rotary"}
MODERNBERT_FIELDS = FieldGroups(
    applied=ENCODER_SIZE_FIELDS.union(
        MODERNBERT_DEFAULTS,
        [
            "architectures",
            "model_type",
            "hidden_activation",
            "classifier_activation",
            "layer_types",
            "rope_parameters",
            "pad_token_id",
            "eos_token_id",
        ],
    ),
    required={**COMMON_REQUIRED_VALUES, "rope_scaling": (None,)},
    neutral=COMMON_NEUTRAL_FIELDS.union(
        [
            "attention_dropout",
            "embedding_dropout",
            "mlp_dropout",
            "classifier_dropout",
            "initializer_range",
            "initializer_cutoff_factor",
            "cls_token_id",
            # Rotations have no last position.
            "max_position_embeddings",
            # Of classes that are not supported.
            "classifier_pooling",
            # How logits and attention are computed, with the same results.
            "sparse_prediction",
            "sparse_pred_ignore_index",
            "deterministic_flash_attn",
            "reference_compile",
            "repad_logits_with_grad",
            # Published files have them, and no class reads them.
            "layer_norm_eps",
            "position_embedding_type",
        ]
    ),
)


def modernbert_fields(settings: Settings, kind: str, where: str) -> dict[str, Any]:
    """Returns the fields of `T5Config`, except those of logits.

    Args:
        kind: how the name of the class ends.
        where: before the names of fields in messages.

    Raises:
        UserError: for a value that t5lite has no counterpart of, or two that contradict each other.
    """
    given = {**MODERNBERT_DEFAULTS, **settings}
    return {
        **MODERNBERT_FIXED,
        **size_fields(settings, where),
        **_windows_and_bases(settings, where),
        "mlp_activations": (_activation(settings, kind, where), "linear"),
        "norm": "layer" if truth(given, "norm_bias", where) else "layer_no_bias",
        "norm_epsilon": number(given, "norm_eps", where),
        "linear_bias": _linear_bias(given, kind, where),
    }


def _activation(settings: Settings, kind: str, where: str) -> str:
    name = activation(settings, "hidden_activation", where)
    of_head = activation(settings, "classifier_activation", where)
    if kind != "Model" and name != of_head:
        raise UserError(
            f"{where}classifier_activation must be hidden_activation, as t5lite has one for both, "
            f"got {of_head!r} and {name!r}"
        )
    return name


def _linear_bias(given: Settings, kind: str, where: str) -> bool:
    names = _BIASES[:2] if kind == "Model" else _BIASES
    biases = {name: truth(given, name, where) for name in names}
    if len(set(biases.values())) > 1:
        raise UserError(
            f"{where}{', '.join(biases)} must be equal, as t5lite has one choice for all, got "
            f"{', '.join(str(value) for value in biases.values())}"
        )
    return biases["attention_bias"]


def _windows_and_bases(settings: Settings, where: str) -> dict[str, Any]:
    given = {**MODERNBERT_DEFAULTS, **settings}
    kinds = _layer_types(settings, where)
    # A token sees half of the window to each side, itself not counted.
    half = size(given, "local_attention", where) // 2
    windows = [None if kind == _FULL else (half, half) for kind in kinds]
    bases = {name: number(given, name, where) for name in ("global_rope_theta", "local_rope_theta")}
    rotations = {"rope_parameters": settings.get("rope_parameters")}
    usual_base, usual_windowed = bases.values()
    by_kind = rotary_fields_by_kind(rotations, usual_base, usual_windowed, where)
    if by_kind["rotary_scaling"]:
        kind = by_kind["rotary_scaling"][0]
        raise UserError(f"{where}rope_type must be 'default', got {kind!r}")
    found = (by_kind["rotary_base"], by_kind["rotary_base_windowed"])
    for (name, base), used in zip(bases.items(), found, strict=True):
        if name in settings and base != used:
            raise UserError(
                f"{where}{name} and rope_parameters must hold the same number, got {base} and "
                f"{used}"
            )
    fields: dict[str, Any] = {"rotary_base": found[0], "encoder_windows": _repeating(windows)}
    if set(windows) == {(half, half)}:
        fields["rotary_base"] = found[1]
    elif set(windows) != {None}:
        fields["rotary_base_windowed"] = found[1]
    return fields


def _layer_types(settings: Settings, where: str) -> list[str]:
    layers = size(settings, "num_hidden_layers", where)
    every = size({**MODERNBERT_DEFAULTS, **settings}, "global_attn_every_n_layers", where)
    kinds = settings.get("layer_types")
    usual = [_SLIDING if index % every else _FULL for index in range(layers)]
    if kinds is None:
        return usual
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise UserError(
            f"{where}layer_types must be a list of num_hidden_layers ({layers}) kinds of layers, "
            f"got {kinds!r:.80}"
        )
    for kind in kinds:
        check_choice(f"{where}layer_types", kind, (_FULL, _SLIDING))
    if "global_attn_every_n_layers" in settings and kinds != usual:
        raise UserError(
            f"{where}global_attn_every_n_layers and layer_types must agree, got {every} and "
            f"{kinds!r:.80}"
        )
    return kinds


def _repeating(windows: Sequence[Window | None]) -> tuple[Window | None, ...]:
    """Returns the shortest pattern that repeats over the layers; () for no window.

    >>> _repeating([None, (2, 2), (2, 2), None, (2, 2)])
    (None, (2, 2), (2, 2))
    """
    if not any(windows):
        return ()
    count = len(windows)
    period = next(n for n in range(1, count + 1) if windows[n:] == windows[: count - n])
    return tuple(windows[:period])


def written_fields(config: T5Config) -> dict[str, Any]:
    """Returns the content of config.json that `modernbert_fields` reads, and the dropout.

    Raises:
        UserError: naming a field of `T5Config` that ModernBERT cannot express.
    """
    if config.norm not in ("layer", "layer_no_bias"):
        raise no_counterpart(MODERNBERT_NAME, config, "norm")
    name = written_activation(config, MODERNBERT_NAME, ("linear",))
    return {
        **written_sizes(config),
        **_written_windows(config),
        "hidden_activation": name,
        "classifier_activation": name,
        "norm_eps": config.norm_epsilon,
        "norm_bias": config.norm == "layer",
        **dict.fromkeys(_BIASES, config.linear_bias),
        **dict.fromkeys(
            ("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"),
            float(config.dropout_rate),
        ),
    }


def _written_windows(config: T5Config) -> dict[str, Any]:
    pattern = config.encoder_windows or (None,)
    widths = sorted({window for window in pattern if window is not None})
    if len(widths) > 1 or any(left != right for left, right in widths):
        raise no_counterpart(MODERNBERT_NAME, config, "encoder_windows")
    layers = range(config.num_encoder_layers)
    kinds = [_FULL if pattern[n % len(pattern)] is None else _SLIDING for n in layers]
    windows = {"layer_types": kinds, "rope_parameters": rope_settings_by_kind(config)}
    return {**windows, "local_attention": 2 * widths[0][0]} if widths else windows

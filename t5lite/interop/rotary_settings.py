"""Rotary positions of a config.json of transformers, both ways.

Source: huggingface/transformers@v5.24.0:src/transformers/modeling_rope_utils.py
"""

from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError, check_choice
from t5lite.interop.family import Settings
from t5lite.interop.settings_values import number
from t5lite.models.config import T5Config

_LENGTH = "original_max_position_embeddings"
# The arguments of the kinds of scaling that are applied, in the order of `T5Config.rotary_scaling`.
_ARGUMENTS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        _LENGTH,
    ),
}
# The kinds of layers that may have positions of their own.
_FULL = "full_attention"
_SLIDING = "sliding_attention"


def rotary_fields(settings: Settings, usual_base: float, where: str) -> dict[str, Any]:
    """Returns the fields of `T5Config` for one rotation in all layers.

    Args:
        usual_base: the base where the file has none.
        where: before the names of fields in messages.

    Raises:
        UserError: for a kind of scaling, or an argument of one, that t5lite does not have.
    """
    field = _field_of(settings, where)
    rope = settings.get(field) or {}
    base = number(settings, "rope_theta", where, usual=usual_base)
    own_base, scaling = _rotation(rope, base, settings, f"{where}{field}.")
    return {"rotary_base": own_base, "rotary_scaling": scaling}


def rotary_fields_by_kind(
    settings: Settings, usual_base: float, usual_windowed: float, where: str
) -> dict[str, Any]:
    """Returns the fields of `T5Config` for layers with a window that rotate in their own way.

    Args:
        usual_base, usual_windowed: the bases, without and with a window, where the file has none.

    Raises:
        UserError: as `rotary_fields`; for scaling in layers with a window, too.
    """
    field = _field_of(settings, where)
    given = settings.get(field) or {}
    by_kind = given if field == "rope_parameters" else {_FULL: given}
    if strange := sorted(by_kind.keys() - {_FULL, _SLIDING}):
        raise UserError(
            f"{where}{field} must hold {_FULL} and {_SLIDING}, got {strange[0]!r}; t5lite has no "
            "counterpart of it"
        )
    full = by_kind.get(_FULL) or {}
    sliding = by_kind.get(_SLIDING) or {}
    base = number(settings, "rope_theta", where, usual=usual_base)
    windowed = number(settings, "rope_local_base_freq", where, usual=usual_windowed)
    base, scaling = _rotation(full, base, settings, f"{where}{field}.{_FULL}.")
    windowed, other = _rotation(sliding, windowed, settings, f"{where}{field}.{_SLIDING}.")
    if other:
        raise UserError(
            f"{where}{field}.{_SLIDING}.rope_type must be 'default', got {other[0]!r}; t5lite "
            "scales only layers without a window"
        )
    return {"rotary_base": base, "rotary_base_windowed": windowed, "rotary_scaling": scaling}


def _field_of(settings: Settings, where: str) -> str:
    """Returns which of two fields holds the rotation; the first is that of transformers 4."""
    given = [f for f in ("rope_scaling", "rope_parameters") if settings.get(f)]
    if len(given) > 1:
        raise UserError(f"{where}rope_scaling and rope_parameters are mutually exclusive, got both")
    field = given[0] if given else "rope_parameters"
    if not isinstance(settings.get(field), Mapping | None):
        raise UserError(f"{where}{field} must be an object, got {settings[field]!r:.80}")
    return field


def _rotation(
    rope: Any, base: float, settings: Settings, where: str
) -> tuple[float, tuple[Any, ...]]:
    if not isinstance(rope, Mapping):
        raise UserError(f"{where[:-1]} must be an object, got {rope!r:.80}")
    name = "rope_type" if "rope_type" in rope else "type"
    kind = rope.get(name, "default")
    if not isinstance(kind, str):
        raise UserError(f"{where}{name} must be a name, got {kind!r:.80}")
    check_choice(f"{where}{name}", kind, _ARGUMENTS)
    arguments = _ARGUMENTS[kind]
    known = {"rope_type", "type", "rope_theta", *arguments}
    for field, value in rope.items():
        is_whole = field == "partial_rotary_factor" and value == 1
        if field not in known and value is not None and not is_whole:
            raise UserError(
                f"{where}{field} has no counterpart with rope_type {kind!r}, got {value!r:.80}"
            )
    base = number(rope, "rope_theta", where, usual=base)
    if kind == "default":
        return base, ()
    # transformers takes the length of pre-training from here if it is not given.
    usual = {_LENGTH: settings.get("max_position_embeddings")}
    values = [number(rope, field, where, usual=usual.get(field)) for field in arguments]
    return base, (kind, *values)


def rope_settings(config: T5Config) -> dict[str, Any]:
    """Returns `rope_parameters` of one rotation in all layers."""
    kind, *values = config.rotary_scaling or ("default",)
    arguments = dict(zip(_ARGUMENTS[kind], values, strict=True))
    if _LENGTH in arguments:
        arguments[_LENGTH] = round(arguments[_LENGTH])
    return {"rope_type": kind, "rope_theta": float(config.rotary_base), **arguments}


def rope_settings_by_kind(config: T5Config) -> dict[str, Any]:
    """Returns `rope_parameters` of layers with and without a window."""
    windowed = config.rotary_base_windowed
    base = config.rotary_base if windowed is None else windowed
    return {
        _FULL: rope_settings(config),
        _SLIDING: {"rope_type": "default", "rope_theta": base},
    }

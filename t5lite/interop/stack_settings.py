"""A stack of layers in a config.json of Gemma, Llama, Qwen and those made from them, both ways.

They name sizes alike; `StackForm` holds what differs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, check_choice, choose
from t5lite.interop.family import Settings
from t5lite.interop.rotary_settings import (
    rope_settings,
    rope_settings_by_kind,
    rotary_fields,
    rotary_fields_by_kind,
)
from t5lite.interop.settings_values import number, optional_number, size
from t5lite.interop.t5_settings import TRANSFORMERS_ACTIVATIONS
from t5lite.interop.writable import no_counterpart
from t5lite.models.config import T5Config
from t5lite.models.masks import Window

FULL = "full_attention"
SLIDING = "sliding_attention"
# Their names of the sizes that a stack may have of its own.
SIZE_NAMES = {
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_dim": "intermediate_size",
}
_WRITTEN_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu_pytorch_tanh",
    "gelu_exact": "gelu",
    "silu": "silu",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackForm:
    """What distinguishes the configurations of stacks.

    Args:
        defaults: the values of fields that are not in a file.
        activation: the field of the activation.
        layer_types: from settings, number of layers and `where` to the kind of each layer, where
            the file does not list them; None if all layers are full.
        scale: the field whose inverse root scales scores; None for the width of a head.
        soft_cap: the field of the cap of scores; None if there is none.
        bases: of rotary positions in layers without and with a window; one for all layers.
    """

    defaults: Settings
    activation: str
    layer_types: Callable[[Settings, int, str], Sequence[str]] | None = None
    scale: str | None = None
    soft_cap: str | None = None
    bases: tuple[float, ...] = (10000.0,)

    @property
    def fields(self) -> frozenset[str]:
        """The fields that `stack_fields` applies."""
        named = {name for name in (self.activation, self.scale, self.soft_cap) if name}
        rotary = {"rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings"}
        local = {"rope_local_base_freq"} if len(self.bases) == 2 else set()
        windows = {"layer_types", "sliding_window"} if self.layer_types else set()
        others = {"num_hidden_layers", "rms_norm_eps"}
        return frozenset(SIZE_NAMES.values()).union(named, rotary, local, windows, others)


def stack_fields(
    given: Settings, form: StackForm, where: str, window: Callable[[int], Window]
) -> dict[str, Any]:
    """Returns the fields of `T5Config` for a stack, and its `num_layers` and `windows`.

    `num_kv_heads` is always a number.

    Args:
        where: before the names of fields in messages.
        window: from `sliding_window` to how many tokens a layer sees to the left and the right.

    Raises:
        UserError: for a size that is none, or a choice that t5lite does not have.
    """
    settings = {**form.defaults, **given}
    heads = size(settings, "num_attention_heads", where)
    embed_dim = size(settings, "hidden_size", where)
    # Where these are null, transformers takes the usual sizes.
    usual = {"num_key_value_heads": heads, "head_dim": max(1, embed_dim // heads)}
    settings |= {name: value for name, value in usual.items() if settings.get(name) is None}
    layers = size(settings, "num_hidden_layers", where)
    fields: dict[str, Any] = {n: size(settings, theirs, where) for n, theirs in SIZE_NAMES.items()}
    scalar = number(settings, form.scale or "head_dim", where)
    if len(form.bases) == 2:
        rotary = rotary_fields_by_kind(settings, form.bases[0], form.bases[1], where)
    else:
        rotary = rotary_fields(settings, form.bases[0], where)
    return {
        **fields,
        **rotary,
        "num_layers": layers,
        "windows": _windows(settings, form, layers, where, window),
        "attention_scale": scalar**-0.5,
        "attention_soft_cap": optional_number(settings, form.soft_cap, where),
        "mlp_activations": (_activation(settings, form.activation, where), "linear"),
        "norm_epsilon": number(settings, "rms_norm_eps", where),
    }


def used_rotary(fields: Mapping[str, Any], *patterns: tuple[Window | None, ...]) -> dict[str, Any]:
    """Returns the fields of `T5Config` without rotations that no layer has.

    Args:
        patterns: the windows of each stack.
    """
    used = dict(fields)
    windows = [pair for pattern in patterns for pair in pattern or (None,)]
    if used.get("rotary_base_windowed") is not None:
        if all(pair is None for pair in windows):
            del used["rotary_base_windowed"]
        elif None not in windows:
            used["rotary_scaling"] = ()
    return used


def _activation(settings: Settings, field: str, where: str) -> str:
    name = settings.get(field)
    if not isinstance(name, str):
        raise UserError(f"{where}{field} must be a name, got {name!r:.80}")
    return choose(f"{where}{field}", name, TRANSFORMERS_ACTIVATIONS)


def _windows(
    settings: Settings,
    form: StackForm,
    layers: int,
    where: str,
    window: Callable[[int], Window],
) -> tuple[Window | None, ...]:
    if form.layer_types is None:
        return ()
    kinds = settings.get("layer_types")
    if kinds is None:
        kinds = form.layer_types(settings, layers, where)
    if not isinstance(kinds, Sequence) or isinstance(kinds, str) or len(kinds) != layers:
        rule = f"a list of num_hidden_layers ({layers}) kinds of layers"
        raise UserError(f"{where}layer_types must be {rule}, got {kinds!r:.80}")
    for index, kind in enumerate(kinds):
        check_choice(f"{where}layer_types[{index}]", str(kind), (FULL, SLIDING))
    if SLIDING not in kinds:
        return ()
    pair = window(size(settings, "sliding_window", where))
    return shortest_pattern([pair if kind == SLIDING else None for kind in kinds])


def shortest_pattern(windows: Sequence[Window | None]) -> tuple[Window | None, ...]:
    """Returns the shortest pattern that gives these windows when it repeats.

    >>> shortest_pattern([(3, 0), None, (3, 0), None, (3, 0)])
    ((3, 0), None)
    """
    for period in range(1, len(windows)):
        if all(pair == windows[index % period] for index, pair in enumerate(windows)):
            return tuple(windows[:period])
    return tuple(windows)


def stack_settings(
    config: T5Config,
    form: StackForm,
    stack: str,
    sliding_window: Callable[[Window], int | None],
    family: str,
) -> dict[str, Any]:
    """Returns the settings of a stack whose sizes are those of `config`.

    Args:
        stack: "encoder" or "decoder".
        sliding_window: from how many tokens a layer sees to their one number, None if they have
            none for it.
        family: the name of the family, for messages.

    Raises:
        UserError: naming the field that has no counterpart.
    """
    layers: int = getattr(config, f"num_{stack}_layers")
    windows: tuple[Window | None, ...] = getattr(config, f"{stack}_windows") or (None,)
    kinds = [windows[index % len(windows)] for index in range(layers)]
    numbers = {sliding_window(pair) for pair in kinds if pair is not None}
    scalar = round(config.attention_scale**-2)
    usual_scale = (scalar if form.scale else config.head_dim) ** -0.5
    by_kind = len(form.bases) == 2
    first, *rest = config.mlp_activations
    is_known = first in _WRITTEN_ACTIVATIONS and rest == ["linear"]
    has_windows = bool(numbers)
    scales_all = bool(config.rotary_scaling) and config.rotary_base_windowed is None
    for is_problem, field in (
        (len(numbers) > 1 or None in numbers, f"{stack}_windows"),
        (has_windows and form.layer_types is None, f"{stack}_windows"),
        (not is_known, "mlp_activations"),
        (usual_scale != config.attention_scale, "attention_scale"),
        (not form.soft_cap and config.attention_soft_cap is not None, "attention_soft_cap"),
        (not by_kind and config.rotary_base_windowed is not None, "rotary_base_windowed"),
        (by_kind and has_windows and scales_all, "rotary_scaling"),
    ):
        if is_problem:
            raise no_counterpart(family, config, field)
    written: dict[str, Any] = {theirs: getattr(config, n) for n, theirs in SIZE_NAMES.items()}
    written |= {
        "num_key_value_heads": config.kv_heads,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": layers,
        form.activation: _WRITTEN_ACTIVATIONS[first],
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope_settings_by_kind(config) if by_kind else rope_settings(config),
        "attention_dropout": 0.0,
        "attention_bias": False,
    }
    if form.scale is not None:
        written[form.scale] = scalar
    if form.soft_cap is not None:
        written[form.soft_cap] = config.attention_soft_cap
    if form.layer_types is not None:
        written["layer_types"] = [FULL if pair is None else SLIDING for pair in kinds]
        # transformers makes the mask of a window even where no layer has one.
        written["sliding_window"] = numbers.pop() if numbers else form.defaults["sliding_window"]
    return written

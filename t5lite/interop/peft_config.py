"""`adapter_config.json` of PEFT: what each field means, both ways.

Source: huggingface/peft@v0.21.2:src/peft/tuners/*/config.py.
"""

from collections.abc import Collection, Mapping
from typing import Any

from t5lite.core.errors import UserError, check_choice
from t5lite.interop.settings_values import truth
from t5lite.models.adalora import AdaLoRA
from t5lite.models.adapters import Adapter
from t5lite.models.ia3 import IA3
from t5lite.models.lora import PISSA, LoRA
from t5lite.models.model import Model

LORA_TYPE = "LORA"
ADALORA_TYPE = "ADALORA"
IA3_TYPE = "IA3"
PREFIX_TYPE = "PREFIX_TUNING"
PROMPT_TYPE = "PROMPT_TUNING"
P_TUNING_TYPE = "P_TUNING"
PROMPT_TYPES = (PREFIX_TYPE, PROMPT_TYPE, P_TUNING_TYPE)
PEFT_TYPES = (LORA_TYPE, ADALORA_TYPE, IA3_TYPE, *PROMPT_TYPES)
_OF_FILES = (
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
)
# Sizes of prompts, and how they start and train: files hold what networks have computed.
_OF_PROMPTS = (
    "num_virtual_tokens",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
    "encoder_hidden_size",
    "encoder_reparameterization_type",
    "encoder_num_layers",
    "encoder_dropout",
    "prefix_projection",
    "init_weights",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
)
# Fields that are applied, or only say which maps are adapted, which the tensors do too.
_APPLIED = {
    LORA_TYPE: ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules"),
    ADALORA_TYPE: (
        "init_r",
        "lora_alpha",
        "lora_dropout",
        "rank_pattern",
        "target_modules",
        # How PEFT shares ranks out while it trains.
        "r",
        "target_r",
        "tinit",
        "tfinal",
        "deltaT",
        "beta1",
        "beta2",
        "orth_reg_weight",
        "total_step",
    ),
    IA3_TYPE: ("target_modules", "feedforward_modules"),
    **dict.fromkeys(PROMPT_TYPES, _OF_PROMPTS),
}
# How adapters start, as far as the base stays as it is.
_FIRST_VALUES = (True, False, "gaussian", "orthogonal", "eva")


def read_adapter_config(
    config: Mapping[str, Any], owner: str, ignore_fields: Collection[str]
) -> str:
    """Checks the fields of a configuration, and returns its `peft_type`.

    Args:
        owner: the file, for messages.
        ignore_fields: unknown fields that change nothing.

    Raises:
        UserError: for an unknown type, or a field that would change what the adapter computes.
    """
    kind = config.get("peft_type")
    check_choice(f"{owner}: peft_type", kind, PEFT_TYPES)
    assert isinstance(kind, str)
    known = {*_OF_FILES, *_APPLIED[kind], *ignore_fields, "init_ia3_weights"}
    if kind in (LORA_TYPE, ADALORA_TYPE):
        known.add("init_lora_weights")
        first = config.get("init_lora_weights", True)
        if first not in _FIRST_VALUES:
            raise UserError(
                f"{owner}: init_lora_weights must leave the base as it is, got {first!r}; save the "
                "adapter with path_initial_model_for_weight_conversion"
            )
    for name, value in config.items():
        if name not in known and value not in (None, False, "none") and value not in ({}, []):
            raise UserError(
                f"{owner}: {name} is not applied by t5lite, got {value!r}; merge the adapter with "
                "peft, or list the field in convert.ignore_fields if it changes nothing"
            )
    return kind


def lora_of(config: Mapping[str, Any], targets: tuple[str, ...], rank: int, owner: str) -> LoRA:
    """Returns the adapter of a configuration.

    Args:
        targets: names of maps.
        rank: that of the tensors.
    """
    if config.get("r") != rank:
        got = config.get("r")
        raise UserError(f"{owner}: r must be the rank of its tensors, {rank}, got {got!r}")
    flags = {"use_rslora": False, "use_dora": False, **config}
    return LoRA(
        targets=targets,
        rank=rank,
        alpha=_number(config, "lora_alpha", owner),
        dropout_rate=_number({"lora_dropout": 0.0, **config}, "lora_dropout", owner),
        rank_stabilized=truth(flags, "use_rslora", f"{owner}: "),
        decomposed=truth(flags, "use_dora", f"{owner}: "),
    )


def adalora_of(config: Mapping[str, Any], targets: tuple[str, ...], owner: str) -> AdaLoRA:
    """Returns the adapter of a configuration; `targets` are names of maps."""
    rank = config.get("init_r")
    if type(rank) is not int:
        raise UserError(f"{owner}: init_r must be a whole number, got {rank!r}")
    return AdaLoRA(
        targets=targets,
        rank=rank,
        alpha=_number(config, "lora_alpha", owner),
        dropout_rate=_number({"lora_dropout": 0.0, **config}, "lora_dropout", owner),
    )


def _number(config: Mapping[str, Any], name: str, owner: str) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{owner}: {name} must be a number, got {value!r}")
    return float(value)


def common_settings(model: Model, base_name: str | None) -> dict[str, Any]:
    """Returns the fields of adapter_config.json that all types have."""
    generates = "SEQ_2_SEQ_LM" if model.has_encoder else "CAUSAL_LM"
    return {
        "task_type": generates if model.has_decoder else "FEATURE_EXTRACTION",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
    }


def adapter_settings(
    adapter: Adapter, model: Model, modules: Mapping[str, str], base_name: str | None
) -> dict[str, Any]:
    """Returns the content of adapter_config.json.

    Args:
        modules: the full names of adapted maps, by the modules of each of their layers.
        base_name: of the base model of Hugging Face.

    Raises:
        UserError: for an adapter that PEFT has no counterpart of.
    """
    common = {
        **common_settings(model, base_name),
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "target_modules": sorted(modules),
    }
    if isinstance(adapter, IA3):
        inputs = sorted(m for m, name in modules.items() if adapter.scales_inputs(name))
        return {"peft_type": IA3_TYPE, "feedforward_modules": inputs, **common}
    if isinstance(adapter, AdaLoRA):
        return {
            "peft_type": ADALORA_TYPE,
            "init_r": adapter.rank,
            "target_r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "lora_dropout": adapter.dropout_rate,
            "bias": "none",
            "init_lora_weights": True,
            # Without one, PEFT does not load the file.
            "total_step": 1,
            **common,
        }
    if not isinstance(adapter, LoRA):
        raise UserError(
            f"--to=peft writes LoRA, AdaLoRA and IA3, got {adapter}; PEFT has no counterpart"
        )
    # PiSSA's base stays intact here, so the difference of two products is a product of twice
    # the rank.
    factor = 2 if adapter.initialization == PISSA else 1
    of_alpha = factor**0.5 if adapter.rank_stabilized else factor
    return {
        "peft_type": LORA_TYPE,
        "r": factor * adapter.rank,
        "lora_alpha": of_alpha * adapter.alpha,
        "lora_dropout": adapter.dropout_rate,
        "use_rslora": adapter.rank_stabilized,
        "use_dora": adapter.decomposed,
        "bias": "none",
        "init_lora_weights": True,
        **common,
    }

"""What distinguishes Gemma 2, Gemma 3 (text), Llama and Qwen 3, as data.

The values of absent fields are those of the configuration classes.

Source: huggingface/transformers@v5.24.0:src/transformers/models/{gemma2,gemma3,llama,qwen3}.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5lite.interop.field_groups import (
    COMMON_NEUTRAL_FIELDS,
    COMMON_REQUIRED_VALUES,
    FieldGroups,
)
from t5lite.interop.settings_values import size
from t5lite.interop.stack_settings import FULL, SLIDING, Settings, StackForm

# What all Gemmas share.
GEMMA: Mapping[str, Any] = {
    "positions": "rotary",
    "norm": "rms_plus_one",
    "norm_placement": "sandwich",
    "scale_embeddings": True,
}
GEMMA_IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}
GEMMA_CAP = "final_logit_softcapping"
SCORE_CAP = "attn_logit_softcapping"
_ID_FIELDS = frozenset({"pad_token_id", "eos_token_id", "bos_token_id"})
# Fields of stacks that have no effect on logits and loss. The dropout of attention is that of
# training, and lengths are those of caches and of pre-training.
STACK_NEUTRAL_FIELDS = (COMMON_NEUTRAL_FIELDS - _ID_FIELDS).union(
    [
        "attention_dropout",
        "initializer_range",
        "is_decoder",
        "cache_implementation",
        "_sliding_window_pattern",
    ]
)
STACK_REQUIRED_VALUES: Mapping[str, tuple[Any, ...]] = {
    **COMMON_REQUIRED_VALUES,
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_bidirectional_attention": (False, None),
    "partial_rotary_factor": (1.0, None),
    "cross_attention_hidden_size": (None,),
    "per_layer_config": (None, {}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderKind:
    """What distinguishes these families.

    Args:
        name: for messages.
        model_type: of its configurations.
        prefix: begins the names of its classes.
        form: of its configuration.
        fixed: fields of `T5Config` that have one value.
        norms: the tensors of the norms of sublayers, by the parameter's name.
        cap: the field of the cap of logits; None if there is none.
        usual_ids: the special ids where files have none.
        applied, required, neutral: fields beyond those of all stacks.
    """

    name: str
    model_type: str
    prefix: str
    form: StackForm
    fixed: Mapping[str, Any]
    norms: Mapping[str, str]
    cap: str | None = None
    usual_ids: Mapping[str, Any]
    applied: frozenset[str] = frozenset()
    required: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    neutral: frozenset[str] = frozenset()


def kind_fields(kind: DecoderKind) -> FieldGroups:
    """Returns the groups of the fields of a family."""
    named = {"architectures", "model_type", "vocab_size", "tie_word_embeddings"}
    caps = frozenset() if kind.cap is None else {kind.cap}
    return FieldGroups(
        applied=kind.form.fields.union(named, caps, _ID_FIELDS, kind.applied),
        required={**STACK_REQUIRED_VALUES, **kind.required},
        neutral=STACK_NEUTRAL_FIELDS | kind.neutral,
    )


def alternating(settings: Settings, layers: int, where: str) -> list[str]:
    """Returns the kinds of layers of Gemma 2: every second one is full."""
    return [FULL if index % 2 else SLIDING for index in range(layers)]


def every_sixth(settings: Settings, layers: int, where: str) -> list[str]:
    """Returns the kinds of layers of Gemma 3: every sixth one is full, or another."""
    period = size({"sliding_window_pattern": 6, **settings}, "sliding_window_pattern", where)
    return [SLIDING if (index + 1) % period else FULL for index in range(layers)]


def _qwen_layers(settings: Settings, layers: int, where: str) -> list[str]:
    if settings["sliding_window"] is None:
        return [FULL] * layers
    first = size(settings, "max_window_layers", where, least=0)
    return [SLIDING if index >= first else FULL for index in range(layers)]


_GEMMA_DEFAULTS = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
GEMMA2_FORM = StackForm(
    defaults={
        **_GEMMA_DEFAULTS,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        SCORE_CAP: 50.0,
        GEMMA_CAP: 30.0,
    },
    activation="hidden_activation",
    layer_types=alternating,
    scale="query_pre_attn_scalar",
    soft_cap=SCORE_CAP,
)
GEMMA3_FORM = StackForm(
    defaults={
        **_GEMMA_DEFAULTS,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        GEMMA_CAP: None,
    },
    activation="hidden_activation",
    layer_types=every_sixth,
    scale="query_pre_attn_scalar",
    bases=(1_000_000.0, 10_000.0),
)
_GEMMA_NORMS = {
    "pre_self_attention_layer_norm": "input_layernorm",
    "post_self_attention_layer_norm": "post_attention_layernorm",
    "pre_mlp_layer_norm": "pre_feedforward_layernorm",
    "post_mlp_layer_norm": "post_feedforward_layernorm",
}
_LLAMA_NORMS = {
    "pre_self_attention_layer_norm": "input_layernorm",
    "pre_mlp_layer_norm": "post_attention_layernorm",
}
GEMMA2 = DecoderKind(
    name="Gemma 2",
    model_type="gemma2",
    prefix="Gemma2",
    form=GEMMA2_FORM,
    fixed=GEMMA,
    norms=_GEMMA_NORMS,
    cap=GEMMA_CAP,
    usual_ids=GEMMA_IDS,
    # Published files have it beside hidden_activation, which is the one that is applied.
    neutral=frozenset({"hidden_act"}),
)
GEMMA3 = DecoderKind(
    name="Gemma 3",
    model_type="gemma3_text",
    prefix="Gemma3",
    form=GEMMA3_FORM,
    fixed={**GEMMA, "qk_norm": True},
    norms=_GEMMA_NORMS,
    cap=GEMMA_CAP,
    usual_ids=GEMMA_IDS,
    applied=frozenset({"sliding_window_pattern"}),
    # transformers stores it and never applies it.
    required={SCORE_CAP: (None,)},
    neutral=frozenset({"hidden_act"}),
)
LLAMA = DecoderKind(
    name="Llama",
    model_type="llama",
    prefix="Llama",
    form=StackForm(
        defaults={
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "head_dim": None,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
        activation="hidden_act",
    ),
    fixed={"positions": "rotary"},
    norms=_LLAMA_NORMS,
    usual_ids={"eos_token_id": 2, "decoder_start_token_id": 1},
    neutral=frozenset({"pretraining_tp"}),
)
QWEN3 = DecoderKind(
    name="Qwen 3",
    model_type="qwen3",
    prefix="Qwen3",
    form=StackForm(
        defaults={
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "tie_word_embeddings": False,
        },
        activation="hidden_act",
        layer_types=_qwen_layers,
    ),
    fixed={"positions": "rotary", "qk_norm": True},
    norms=_LLAMA_NORMS,
    usual_ids={},
    applied=frozenset({"use_sliding_window", "max_window_layers"}),
)
# A model is written as the first whose fixed fields are its own.
DECODER_KINDS = (GEMMA3, GEMMA2, QWEN3, LLAMA)

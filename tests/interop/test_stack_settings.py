"""Every field of the families after T5 is applied, rejected by name, or without effect."""

import json
import pathlib

import pytest

from t5lite.core.errors import UserError
from t5lite.interop.decoder_kinds import DECODER_KINDS, GEMMA2_FORM, GEMMA3_FORM
from t5lite.interop.families import FAMILIES, family_to_write, transformers_class
from t5lite.interop.field_groups import check_required, unknown_fields
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from t5lite.models.config import T5Config
from tests import small

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
# Of every class of transformers, with the values that it has without a file.
FIELDS = json.loads((GOLDEN / "stack_fields.json").read_text())["fields"]

STACK = {
    "vocab_size": 47,
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 22,
    "num_hidden_layers": 4,
    "sliding_window": 3,
}
LLAMA = {name: value for name, value in STACK.items() if name != "sliding_window"}
SETTINGS = {
    "gemma2": STACK,
    "gemma3_text": {**STACK, "sliding_window_pattern": 2},
    "gemma3": {"text_config": {**STACK, "sliding_window_pattern": 2}},
    "llama": LLAMA,
    "qwen3": {**STACK, "use_sliding_window": True, "max_window_layers": 3},
    "t5gemma": {
        "architectures": ["T5GemmaForConditionalGeneration"],
        "encoder": STACK,
        "decoder": STACK,
    },
    "t5gemma2": {"encoder": {"text_config": STACK, "eoi_token_index": 5}, "decoder": STACK},
}


def config_of(kind, settings):
    return FAMILIES[kind].read(settings, {}, "c").model.config


def filled(settings):
    """The settings with a value where there is none: null is the same as no field."""
    if isinstance(settings, dict):
        return {name: filled(value) for name, value in settings.items()}
    return 0 if settings is None else settings


@pytest.mark.parametrize("kind", FIELDS)
def test_every_field_of_transformers_is_in_a_group(kind):
    settings = filled(FIELDS[kind])
    if kind in ("gemma3", "t5gemma2"):
        settings.get("encoder", settings)["vision_config"] = {"any": 1}
    assert unknown_fields(settings, FAMILIES[kind].fields) == {}


FORMS = {
    **{kind.model_type: (kind.form, FIELDS[kind.model_type]) for kind in DECODER_KINDS},
    "t5gemma encoder": (GEMMA2_FORM, FIELDS["t5gemma"]["encoder"]),
    "t5gemma decoder": (GEMMA2_FORM, FIELDS["t5gemma"]["decoder"]),
    "t5gemma2 encoder": (GEMMA3_FORM, FIELDS["t5gemma2"]["encoder"]["text_config"]),
    "t5gemma2 decoder": (GEMMA3_FORM, FIELDS["t5gemma2"]["decoder"]),
}


@pytest.mark.parametrize("case", FORMS)
def test_absent_fields_have_the_values_of_transformers(case):
    form, theirs = FORMS[case]
    derived = {name for name, value in form.defaults.items() if value is None}
    if "use_sliding_window" in theirs:
        # transformers drops it where it is not used.
        derived.add("sliding_window")
    named = form.defaults.keys() - derived
    assert {name: form.defaults[name] for name in named} == {name: theirs[name] for name in named}
    rope = theirs["rope_parameters"]
    kinds = [rope[kind] for kind in ("full_attention", "sliding_attention") if kind in rope]
    assert [rotation["rope_theta"] for rotation in kinds or [rope]] == list(form.bases)


# A value of each applied field that differs from those of STACK.
OTHER = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 99.0,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "rope_parameters": {"rope_type": "linear", "factor": 2.0},
}
WINDOWED = {"sliding_window": 5, "layer_types": ["full_attention"] * 4}
GEMMA = {"query_pre_attn_scalar": 9, "hidden_activation": "silu", **WINDOWED}
BY_KIND = {
    "rope_local_base_freq": 99.0,
    "sliding_window_pattern": 3,
    "rope_parameters": {"full_attention": {"rope_theta": 5.0}},
}
CAPS = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": None}
CHANGES = {
    "gemma2": {**OTHER, **GEMMA, **CAPS, "vocab_size": 48, "tie_word_embeddings": False},
    "gemma3_text": {
        **OTHER,
        **GEMMA,
        **BY_KIND,
        "vocab_size": 48,
        "tie_word_embeddings": False,
        "final_logit_softcapping": 2.0,
    },
    "llama": {**OTHER, "hidden_act": "gelu", "vocab_size": 48, "tie_word_embeddings": True},
    "qwen3": {
        **OTHER,
        **WINDOWED,
        "hidden_act": "gelu",
        "vocab_size": 48,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "max_window_layers": 1,
    },
}
# transformers takes it only as the length of pre-training, where the scaling names none.
ELSEWHERE = {"architectures", "model_type", "max_position_embeddings"}
ID_FIELDS = {"pad_token_id", "eos_token_id", "bos_token_id"}


@pytest.mark.parametrize("kind", CHANGES)
def test_all_applied_fields_are_tried(kind):
    assert FAMILIES[kind].fields.applied - ELSEWHERE - ID_FIELDS == CHANGES[kind].keys()


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, changes in CHANGES.items() for field in changes]
)
def test_field_that_changes_arithmetic_changes_the_model(kind, field):
    changed = {**SETTINGS[kind], field: CHANGES[kind][field]}
    assert config_of(kind, changed) != config_of(kind, SETTINGS[kind])


# Fields that the two stacks share, and those whose value has to fit that of the other stack.
OF_BOTH = {"hidden_activation", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"}


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("field", sorted({**OTHER, **GEMMA, "attn_logit_softcapping": 1.0}))
def test_field_of_a_stack_of_t5gemma_changes_the_model_or_must_agree(stack, field):
    value = {**OTHER, **GEMMA, "attn_logit_softcapping": 1.0}[field]
    usual = SETTINGS["t5gemma"]
    changed = {**usual, stack: {**STACK, field: value}}
    if field in OF_BOTH or field == "attn_logit_softcapping":
        with pytest.raises(UserError, match=r"encoder\..* and decoder\..* must agree, got"):
            config_of("t5gemma", changed)
    else:
        assert config_of("t5gemma", changed) != config_of("t5gemma", usual)


def paths_of(groups, path=()):
    yield from ((*path, field) for field in groups.required)
    for name, group in groups.parts.items():
        yield from paths_of(group, (*path, name))


REQUIRED = [(kind, path) for kind in SETTINGS for path in paths_of(FAMILIES[kind].fields)]


@pytest.mark.parametrize(("kind", "path"), REQUIRED)
def test_field_without_a_counterpart_is_rejected_by_its_path(kind, path):
    settings = "other"
    for name in reversed(path):
        settings = {name: settings}
    with pytest.raises(UserError, match=f"c: {'.'.join(path)} must be .*, got 'other'"):
        check_required(settings, FAMILIES[kind].fields, "c")


@pytest.mark.parametrize("kind", ["gemma3_text", "t5gemma2"])
def test_cap_of_scores_that_transformers_stores_and_never_applies_is_rejected(kind):
    settings = {"attn_logit_softcapping": 50.0}
    path = ""
    if kind == "t5gemma2":
        settings = {"decoder": settings}
        path = "decoder."
    with pytest.raises(UserError, match=f"{path}attn_logit_softcapping must be None, got 50.0"):
        check_required(settings, FAMILIES[kind].fields, "c")


ROPE = {
    "yarn": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        "rope_type is unknown",
    ),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaling.type is unknown"),
    "longrope": (
        {"rope_parameters": {"rope_type": "longrope"}},
        "rope_type is unknown: got 'long",
    ),
    "argument": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}},
        "rope_parameters.beta_fast has no counterpart with rope_type 'linear', got 32",
    ),
    "unused": ({"rope_scaling": {"factor": 2.0}}, "factor has no counterpart with rope_type 'def"),
    "partial": (
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "partial_rotary_factor has no counterpart",
    ),
    "missing": ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor must be a number"),
    "both": (
        {"rope_scaling": {"type": "linear"}, "rope_parameters": {"factor": 2.0}},
        "rope_scaling and rope_parameters are mutually exclusive",
    ),
    "list": ({"rope_scaling": [1]}, "rope_scaling must be an object"),
}


@pytest.mark.parametrize("case", ROPE)
def test_rotary_positions_without_a_counterpart_are_rejected_by_name(case):
    changes, message = ROPE[case]
    with pytest.raises(UserError, match=message):
        config_of("llama", {**LLAMA, **changes})


def test_scaling_of_layers_with_a_window_is_rejected():
    rope = {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}
    with pytest.raises(UserError, match="sliding_attention.rope_type must be 'default', got 'lin"):
        config_of("gemma3_text", {**STACK, "rope_parameters": rope})
    with pytest.raises(UserError, match="must hold full_attention and sliding_att.*, got 'fast_at"):
        config_of("gemma3_text", {**STACK, "rope_parameters": {"fast_attention": {}}})


def test_length_of_llama3_scaling_is_the_longest_position_if_it_names_none():
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4}
    config = config_of("llama", {**LLAMA, "rope_scaling": rope, "max_position_embeddings": 99})
    assert config.rotary_scaling == ("llama3", 8.0, 1.0, 4.0, 99.0)


def test_windows_are_those_of_transformers():
    config = config_of("t5gemma", SETTINGS["t5gemma"])
    assert config.encoder_windows == ((3, 3), None)
    assert config.decoder_windows == ((2, 0), None)
    for width, seen in ((3, (1, 1)), (4, (1, 2))):
        stack = {**STACK, "sliding_window": width}
        outer = {"text_config": stack, "eoi_token_index": 5}
        config = config_of("t5gemma2", {"encoder": outer, "decoder": stack})
        # Four layers with a window: the sixth would have none.
        assert (config.encoder_windows, config.decoder_windows) == ((seen,), ((width - 1, 0),))


LAYERS = {
    "count": ({"layer_types": ["full_attention"]}, r"layer_types must be a list of num_hidden_l"),
    "kind": ({"layer_types": ["chunked_attention"] * 4}, r"layer_types\[0\] is unknown: got 'ch"),
    "window": ({"sliding_window": None}, "sliding_window must be a whole number"),
    "size": ({"hidden_size": "12"}, "hidden_size must be a whole number >= 1 .*, got '12'"),
    "activation": ({"hidden_activation": "mish"}, "hidden_activation is unknown: got 'mish'"),
    "tied": ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
}


@pytest.mark.parametrize("case", LAYERS)
def test_unusable_settings_are_rejected_by_name(case):
    changes, message = LAYERS[case]
    with pytest.raises(UserError, match=f"c/config.json: {message}"):
        config_of("gemma2", {**STACK, **changes})


def test_unused_class_is_named():
    settings = {**STACK, "architectures": ["Gemma2ForSequenceClassification"]}
    with pytest.raises(UserError, match="c holds a Gemma2ForSequenceClassification, which is not"):
        config_of("gemma2", settings)


ROTARY = {"positions": "rotary", "tied_logits": True, "scale_tied_logits": False}
GEMMA_PARTS = {
    **ROTARY,
    "norm": "rms_plus_one",
    "norm_placement": "sandwich",
    "scale_embeddings": True,
    "attention_scale": 0.25,
}


def decoder(**changes):
    return DecoderOnly(small.decoder_config(**{"attention_scale": 6**-0.5, **ROTARY, **changes}))


MODELS = {
    "gemma2": decoder(**GEMMA_PARTS),
    "gemma3_text": decoder(**GEMMA_PARTS, qk_norm=True),
    "llama": decoder(),
    "qwen3": decoder(qk_norm=True, decoder_windows=((3, 0), None)),
    "t5gemma": EncoderDecoder(small.config(**GEMMA_PARTS, separate_embeddings=True)),
    "t5gemma2": EncoderDecoder(small.config(**GEMMA_PARTS, qk_norm=True, merged_attention=True)),
    "t5": EncoderDecoder(small.config()),
}


@pytest.mark.parametrize("kind", MODELS)
def test_model_is_written_as_the_family_with_its_parts(kind):
    family = family_to_write(MODELS[kind])
    assert family is FAMILIES[kind]
    assert family.write(MODELS[kind], "float32").settings["model_type"] == kind
    assert transformers_class(MODELS[kind]).family == kind


NO_COUNTERPART = {
    "windows": decoder(decoder_windows=((3, 0), None)),
    "two windows": decoder(qk_norm=True, decoder_windows=((3, 0), (4, 0))),
    "cap": decoder(attention_soft_cap=5.0),
    "logits cap": decoder(qk_norm=True, logits_soft_cap=5.0),
    "activation": decoder(mlp_activations=("silu",)),
    "scale": decoder(qk_norm=True, attention_scale=0.3),
    "inverse root": decoder(**{**GEMMA_PARTS, "attention_scale": 0.3}),
    "prefix": decoder(prefix_attention=True),
    "bias": decoder(positions="shared_bias"),
    "scaled": decoder(scale_tied_logits=True),
    "uneven window": EncoderDecoder(
        small.config(**GEMMA_PARTS, separate_embeddings=True, encoder_windows=((3, 2), None))
    ),
    "one embedding": EncoderDecoder(small.config(**GEMMA_PARTS)),
    "encoder": EncoderOnly(small.config(num_decoder_layers=0, positions="rotary")),
}
NAMED = {
    "windows": "Llama .* T5Config.decoder_windows",
    "two windows": r"Qwen 3 .* T5Config.decoder_windows \(\(3, 0\), \(4, 0\)\)",
    "cap": "T5Config.attention_soft_cap 5.0",
    "logits cap": "T5Config.logits_soft_cap 5.0",
    "activation": "T5Config.mlp_activations",
    "scale": "T5Config.attention_scale 0.3",
    "inverse root": "Gemma 2 .* T5Config.attention_scale 0.3",
    "prefix": "T5Config.prefix_attention True",
    "bias": "T5Config.positions 'shared_bias'",
    "scaled": "T5Config.scale_tied_logits True",
    "uneven window": "T5Gemma .* T5Config.encoder_windows",
    "one embedding": "T5Config.separate_embeddings False",
    "encoder": "T5Config.norm 'rms'",
}


@pytest.mark.parametrize("case", NO_COUNTERPART)
def test_model_without_a_counterpart_is_rejected_by_its_field(case):
    model = NO_COUNTERPART[case]
    with pytest.raises(UserError, match=f"--to=huggingface: .*{NAMED[case]}.*; keep the checkp"):
        family_to_write(model).write(model, "float32")


def test_scale_that_llama_does_not_have_moves_into_the_queries():
    model = decoder(attention_scale=1.0)
    written = family_to_write(model).write(model, "float32")
    (factor,) = written.factors.values()
    assert factor == pytest.approx(6**0.5)
    assert "query kernels are multiplied by 2.44949" in written.remarks[0]


def test_special_ids_of_a_decoder_start_with_bos():
    flat = FAMILIES["llama"].flat_ids({"bos_token_id": 7, "eos_token_id": [3, 4]})
    assert flat["decoder_start_token_id"] == 7
    flat = FAMILIES["t5gemma"].flat_ids({"decoder": {"bos_token_id": 9, "pad_token_id": 8}})
    assert (flat["decoder_start_token_id"], flat["pad_token_id"]) == (9, 8)


def test_parts_for_images_are_told_from_text():
    config = config_of("gemma3", SETTINGS["gemma3"])
    assert config == config_of("gemma3_text", SETTINGS["gemma3_text"])
    assert isinstance(config, T5Config)

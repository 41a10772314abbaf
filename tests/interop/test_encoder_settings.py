"""Fields, tensors and classes of BERT and ModernBERT: applied, rejected by name, or unread."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t5lite.core.errors import UserError
from t5lite.interop.bert import BERT_FAMILY
from t5lite.interop.field_groups import check_required, unknown_fields
from t5lite.interop.foreign import Foreign
from t5lite.interop.huggingface import read_huggingface, write_huggingface
from t5lite.interop.modernbert import MODERNBERT_FAMILY
from t5lite.models.architectures import EncoderOnly
from t5lite.models.classifier import Classes
from tests import small
from tests.models.encoders import BERT_PARTS, MODERNBERT_PARTS

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
FIELDS = json.loads((GOLDEN / "transformers_fields.json").read_text())
FAMILIES = {"bert": BERT_FAMILY, "modernbert": MODERNBERT_FAMILY}
SETTINGS = {
    name: json.loads((GOLDEN / "huggingface" / name / "config.json").read_text())
    for name in FAMILIES
}
# The published file of ModernBERT base, as transformers 4 wrote it, in these sizes.
OF_TRANSFORMERS_4 = {
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 1000.0,
    "local_rope_theta": 10.0,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 8192,
    "position_embedding_type": "absolute",
    "reference_compile": True,
    "gradient_checkpointing": False,
}


def model_of(family, **changes):
    """The model of the golden settings with changes; None removes a field."""
    settings = {k: v for k, v in {**SETTINGS[family], **changes}.items() if v is not None}
    return FAMILIES[family].read(settings, {}, "folder").model


@pytest.fixture
def folder(tmp_path):
    """Returns a copy of a frozen checkpoint, with changed settings and tensors."""

    def make(case, change=lambda tensors: tensors, **changes):
        shutil.copytree(GOLDEN / "huggingface" / case, tmp_path / "c")
        path = tmp_path / "c" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        tensors = load_file(tmp_path / "c" / "model.safetensors")
        save_file(change(tensors), tmp_path / "c" / "model.safetensors")
        return tmp_path / "c"

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_of_transformers_is_in_one_group(name):
    groups = FAMILIES[name].fields
    assert unknown_fields(dict.fromkeys(FIELDS[name], 0), groups) == {}
    sizes = [groups.applied, groups.neutral, groups.generation, groups.required.keys()]
    assert sum(map(len, sizes)) == len(frozenset().union(*sizes))


# A value of each applied field that differs from the golden one, and what changes with it.
OTHER_VALUES = {
    "bert": {
        "vocab_size": {"vocab_size": 48},
        "hidden_size": {"hidden_size": 18},
        "num_attention_heads": {"num_attention_heads": 5},
        "intermediate_size": {"intermediate_size": 23},
        "num_hidden_layers": {"num_hidden_layers": 3},
        "hidden_act": {"hidden_act": "relu"},
        "layer_norm_eps": {"layer_norm_eps": 1e-6},
        "max_position_embeddings": {"max_position_embeddings": 17},
        "type_vocab_size": {"type_vocab_size": 2},
        "tie_word_embeddings": {"tie_word_embeddings": False},
        "architectures": {"architectures": ["BertModel"]},
    },
    "modernbert": {
        "vocab_size": {"vocab_size": 48},
        "hidden_size": {"hidden_size": 24},
        "num_attention_heads": {"num_attention_heads": 1},
        "intermediate_size": {"intermediate_size": 23},
        "num_hidden_layers": {"num_hidden_layers": 3, "layer_types": None},
        "hidden_activation": {"hidden_activation": "silu", "classifier_activation": "silu"},
        "norm_eps": {"norm_eps": 1e-6},
        "norm_bias": {"norm_bias": True},
        "attention_bias": {"attention_bias": True, "mlp_bias": True, "classifier_bias": True},
        "decoder_bias": {"decoder_bias": False},
        "local_attention": {"local_attention": 6},
        "layer_types": {"layer_types": ["full_attention"] * 5},
        "global_attn_every_n_layers": {"global_attn_every_n_layers": 2, "layer_types": None},
        "rope_parameters": {"rope_parameters": None},
        "global_rope_theta": {"global_rope_theta": 7.0, "rope_parameters": None},
        "local_rope_theta": {"local_rope_theta": 7.0, "rope_parameters": None},
        "tie_word_embeddings": {"tie_word_embeddings": False},
        "architectures": {"architectures": ["ModernBertModel"]},
    },
}


@pytest.mark.parametrize(
    ("family", "field"), [(f, field) for f, fields in OTHER_VALUES.items() for field in fields]
)
def test_field_that_changes_arithmetic_changes_the_model(family, field):
    changes = OTHER_VALUES[family][field]
    if field in ("global_rope_theta", "local_rope_theta"):
        usual = model_of(family, rope_parameters=None)
    else:
        usual = model_of(
            family, **{k: None for k, v in changes.items() if v is None and k != field}
        )
    assert model_of(family, **changes) != usual


@pytest.mark.parametrize(
    ("family", "field"), [(f, n) for f in FAMILIES for n in sorted(FAMILIES[f].fields.neutral)]
)
def test_neutral_field_leaves_the_model_alone(family, field):
    assert model_of(family, **{field: "x"}) == model_of(family)


@pytest.mark.parametrize(
    ("family", "field"), [(f, n) for f in FAMILIES for n in FAMILIES[f].fields.required]
)
def test_field_without_a_counterpart_is_rejected_by_name(family, field):
    with pytest.raises(UserError, match=f"{field} must be .*, got 'other'"):
        check_required({**SETTINGS[family], field: "other"}, FAMILIES[family].fields, "c: ")


def test_written_bert_names_the_kind_of_its_positions():
    written = BERT_FAMILY.write(model_of("bert"), "float32").settings
    assert written["position_embedding_type"] == "absolute"


def test_settings_of_transformers_4_give_the_same_modernbert():
    old = model_of("modernbert", layer_types=None, rope_parameters=None, **OF_TRANSFORMERS_4)
    assert old == model_of("modernbert")
    assert old.config.encoder_windows == (None, (2, 2), (2, 2))
    assert (old.config.rotary_base, old.config.rotary_base_windowed) == (1000.0, 10.0)


def test_modernbert_whose_layers_all_have_a_window_has_one_base():
    config = model_of("modernbert", layer_types=["sliding_attention"] * 5).config
    assert config.encoder_windows == ((2, 2),)
    assert (config.rotary_base, config.rotary_base_windowed) == (10.0, None)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("bert", {"num_attention_heads": 4}, r"hidden_size must be a multiple of .* \(4\), got 15"),
        ("bert", {"hidden_act": "tanh"}, "hidden_act is unknown: got 'tanh'"),
        ("bert", {"type_vocab_size": 0}, "type_vocab_size must be a whole number >= 1"),
        ("bert", {"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
        ("bert", {"hidden_size": "15"}, "hidden_size must be a whole number .*, got '15'"),
        ("modernbert", {"mlp_bias": True}, "attention_bias, mlp_bias, .* must be equal, .* got Fa"),
        (
            "modernbert",
            {"classifier_activation": "silu"},
            "classifier_activation must be hidden_activation, .*, got 'silu' and 'gelu_exact'",
        ),
        (
            "modernbert",
            {"global_attn_every_n_layers": 2},
            "global_attn_every_n_layers and layer_types must agree, got 2 and",
        ),
        (
            "modernbert",
            {"layer_types": ["full_attention"]},
            r"layer_types must be a list of num_hidden_layers \(5\) kinds of layers, got",
        ),
        (
            "modernbert",
            {"layer_types": ["chunked_attention"] * 5},
            "layer_types is unknown: got 'chunked_attention'",
        ),
        (
            "modernbert",
            {"global_rope_theta": 5.0},
            "global_rope_theta and rope_parameters must hold the same number, got 5.0 and 1000.0",
        ),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}},
            "rope_type is unknown: got 'yarn'",
        ),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope_type must be 'default', got 'linear'",
        ),
    ],
)
def test_settings_that_t5lite_does_not_have_are_rejected_by_name(family, changes, message):
    with pytest.raises(UserError, match=message):
        model_of(family, **changes)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("bert", "BertLMHeadModel"),
        ("bert", "BertForNextSentencePrediction"),
        ("modernbert", "ModernBertForMultipleChoice"),
        ("modernbert", "ModernBertDecoderForCausalLM"),
    ],
)
def test_other_classes_are_rejected_by_name(case, name, folder):
    with pytest.raises(UserError, match=f"holds a {name}, which is not supported; supported are"):
        read_huggingface(folder(case, architectures=[name]))


@pytest.mark.parametrize(
    ("case", "kind"),
    [(f"{family}{ending}", ending) for family in FAMILIES for ending in ("", "_model", "_tagger")],
)
def test_class_is_recognised_by_its_tensors(case, kind, folder):
    path = folder(case, architectures=None)
    assert read_huggingface(path).model == read_huggingface(GOLDEN / "huggingface" / case).model


def test_field_that_nobody_knows_is_rejected_by_name(folder):
    with pytest.raises(UserError, match="got position_bucket_size=32; name those"):
        read_huggingface(folder("modernbert", position_bucket_size=32))


def params(foreign):
    return {name: array.load() for name, array in foreign.params.items()}


def assert_equal_params(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def of_tensorflow(tensors):
    """As Google's published BERTs: old names of norms, a pooler, next sentences, and copies."""
    named = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for n, t in tensors.items()
    }
    square = np.ones((15, 15), np.float32)
    return {
        **named,
        "bert.pooler.dense.weight": square,
        "bert.pooler.dense.bias": square[0],
        "cls.seq_relationship.weight": square[:2],
        "cls.seq_relationship.bias": square[0, :2],
        "bert.embeddings.position_ids": np.arange(16)[None],
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }


def test_published_tensors_of_bert_are_read_and_the_unread_are_named(folder):
    found = read_huggingface(folder("bert", of_tensorflow))
    assert_equal_params(params(found), params(read_huggingface(GOLDEN / "huggingface" / "bert")))
    remarks = "\n".join(found.remarks)
    for part in ("pooler.dense", "cls.seq_relationship", "embeddings.position_ids"):
        assert f"{part}" in remarks
    assert "prefix" not in remarks


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ],
)
def test_copies_of_tied_tensors_that_differ_are_rejected(name, of, folder):
    with pytest.raises(UserError, match=f"{name} must equal {of.removeprefix('bert.')}"):
        read_huggingface(folder("bert", lambda tensors: {**tensors, name: tensors[of] + 1}))


@pytest.mark.parametrize("case", ["bert", "modernbert"])
def test_prefix_of_a_wrapper_is_removed_before_that_of_the_family(case, folder):
    path = folder(case, lambda tensors: {f"module.{n}": t for n, t in tensors.items()})
    found = read_huggingface(path)
    assert_equal_params(params(found), params(read_huggingface(GOLDEN / "huggingface" / case)))
    remark = "the prefix 'module.' of DistributedDataParallel is removed from tensor names"
    assert remark in found.remarks


def test_a_tensor_of_several_maps_needs_the_rows_of_all(folder):
    def without_values(tensors):
        name = "model.layers.1.attn.Wqkv.weight"
        return {**tensors, name: tensors[name][:36]}

    message = r"layers.1.attn.Wqkv.weight must have shape \(54, 18\) by .*, got \(36, 18\)"
    with pytest.raises(UserError, match=message):
        read_huggingface(folder("modernbert", without_values))


BERT = small.config(**{**BERT_PARTS, "head_dim": 8, "attention_scale": 8**-0.5})
MODERNBERT = small.config(**{**MODERNBERT_PARTS, "head_dim": 8, "attention_scale": 8**-0.5})


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (BERT, {"head_dim": 6, "attention_scale": 6**-0.5}, "T5Config.head_dim 6"),
        (BERT, {"attention_scale": 1.0}, "T5Config.attention_scale 1.0"),
        (BERT, {"num_kv_heads": 1}, "T5Config.num_kv_heads 1"),
        (BERT, {"mlp_activations": ("gelu", "linear")}, "T5Config.mlp_activations"),
        (BERT, {"norm_placement": "pre"}, "T5Config.norm_placement 'pre'"),
        (BERT, {"logits_bias": False}, "T5Config.logits_bias False"),
        (BERT, {"num_token_types": 0}, "T5Config.num_token_types 0"),
        (BERT, {"encoder_windows": (2,)}, "T5Config.encoder_windows"),
        (MODERNBERT, {"encoder_windows": ((2, 1), None)}, "T5Config.encoder_windows"),
        (MODERNBERT, {"encoder_windows": (2, 3)}, "T5Config.encoder_windows"),
        (MODERNBERT, {"embedding_norm": False}, "T5Config.embedding_norm False"),
        (MODERNBERT, {"scale_tied_logits": True}, "T5Config.scale_tied_logits True"),
    ],
)
def test_encoders_without_a_transformers_class_are_rejected(config, changes, message, tmp_path):
    model = EncoderOnly(dataclasses.replace(config, **changes))
    with pytest.raises(UserError, match=f"--to=huggingface: .* no counterpart of {message}"):
        write_huggingface(Foreign(model=model, params={}), tmp_path, np.dtype(np.float32))


def test_classes_of_whole_examples_are_not_written_as_bert(tmp_path):
    config = dataclasses.replace(BERT, logits_transform=False, logits_bias=False)
    model = EncoderOnly(config, Classes(count=3, per_token=False))
    with pytest.raises(UserError, match="Bert of transformers has no counterpart of Classes.per"):
        write_huggingface(Foreign(model=model, params={}), tmp_path, np.dtype(np.float32))

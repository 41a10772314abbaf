"""Every field of a foreign configuration is applied, rejected by name, or without effect."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t5lite.core.errors import UserError
from t5lite.interop.field_groups import check_required, unknown_fields
from t5lite.interop.generation_settings import T5_IDS, read_special_ids
from t5lite.interop.huggingface import read_huggingface, write_huggingface
from t5lite.interop.t5_fields import T5_FIELDS
from t5lite.interop.t5_settings import t5_config

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
FIELDS = json.loads((GOLDEN / "transformers_fields.json").read_text())
SETTINGS = json.loads((GOLDEN / "huggingface" / "t5_1_1" / "config.json").read_text())


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(GOLDEN / "huggingface" / "t5_1_1", tmp_path / "c")
    return tmp_path / "c"


def change(folder, file="config.json", **changes):
    path = folder / file
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**settings, **changes}))


def change_tensors(folder, function):
    tensors = load_file(folder / "model.safetensors")
    save_file(function(tensors), folder / "model.safetensors")


def test_every_field_of_transformers_is_in_a_group():
    assert unknown_fields(dict.fromkeys(FIELDS["config"], 0), T5_FIELDS) == {}
    groups = [T5_FIELDS.applied, T5_FIELDS.neutral, T5_FIELDS.generation, T5_FIELDS.required.keys()]
    assert sum(map(len, groups)) == len(frozenset().union(*groups))


# A value of each applied field that differs from those of SETTINGS.
OTHER_VALUES = {
    "vocab_size": 48,
    "d_model": 16,
    "num_heads": 2,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "layer_norm_epsilon": 1e-5,
    "relative_attention_num_buckets": 4,
    "relative_attention_max_distance": 64,
    "feed_forward_proj": "gated-silu",
    "dense_act_fn": "relu",
    "is_gated_act": False,
}


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_field_that_changes_arithmetic_changes_the_model(field):
    usual = t5_config(SETTINGS, "config.json")
    assert t5_config({**SETTINGS, field: OTHER_VALUES[field]}, "config.json") != usual


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("local_radius", 5),
        ("global_block_size", 8),
        ("encoder_attention_type", "transient-global"),
    ],
)
def test_field_of_longt5_changes_the_model(field, value):
    settings = {**SETTINGS, "model_type": "longt5"}
    assert t5_config({**settings, field: value}, "c") != t5_config(settings, "c")


@pytest.mark.parametrize("field", T5_FIELDS.required)
def test_field_without_a_counterpart_is_rejected_by_name(field):
    with pytest.raises(UserError, match=f"config.json: {field} must be .*, got 'other'"):
        check_required({**SETTINGS, field: "other"}, T5_FIELDS, "config.json")


@pytest.mark.parametrize("field", sorted(T5_FIELDS.neutral))
def test_neutral_field_leaves_the_model_alone(field):
    assert t5_config({**SETTINGS, field: "x"}, "c") == t5_config(SETTINGS, "c")


@pytest.mark.parametrize(
    ("changes", "activations"),
    [
        ({"feed_forward_proj": "gated-gelu"}, ("gelu", "linear")),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, ("gelu_exact", "linear")),
        ({"feed_forward_proj": "gated-gelu_new"}, ("gelu", "linear")),
        ({"feed_forward_proj": "gated-swish"}, ("silu", "linear")),
        ({"feed_forward_proj": "gelu"}, ("gelu_exact",)),
        ({"feed_forward_proj": "gelu_new"}, ("gelu",)),
        ({"feed_forward_proj": "silu"}, ("silu",)),
        ({"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"}, ("gelu",)),
        ({"feed_forward_proj": "relu", "is_gated_act": True}, ("relu", "linear")),
    ],
)
def test_activation_is_the_one_that_transformers_computes(changes, activations):
    assert t5_config({**SETTINGS, **changes}, "c").mlp_activations == activations


def test_unknown_activation_is_rejected_by_the_name_of_its_field():
    with pytest.raises(UserError, match="dense_act_fn is unknown: got 'tanhh'"):
        t5_config({**SETTINGS, "dense_act_fn": "tanhh"}, "config.json")
    with pytest.raises(UserError, match="is_gated_act must be true or false, got 'yes'"):
        t5_config({**SETTINGS, "is_gated_act": "yes"}, "config.json")


def test_other_names_of_sizes_are_read_and_must_agree():
    renamed = {k: v for k, v in SETTINGS.items() if k != "d_model"}
    assert t5_config({**renamed, "hidden_size": 14}, "c") == t5_config(SETTINGS, "c")
    with pytest.raises(UserError, match="hidden_size and d_model are the same size, got 15 and 14"):
        t5_config({**SETTINGS, "hidden_size": 15}, "c")


# Fields of other families, of code of one's own, and misspelt ones.
UNKNOWN = {
    "attention_bias": True,
    "softcap": 30.0,
    "attn_logit_softcapping": 50.0,
    "rope_scaling": {"factor": 8.0},
    "sliding_window": 4096,
    "num_key_value_heads": 1,
    "num_experts": 8,
    "adapters": {"a": {}},
    "relative_attention_max_distances": 64,
}


@pytest.mark.parametrize("field", UNKNOWN)
def test_unknown_field_is_rejected_by_name_unless_it_is_ignored_by_name(field, folder):
    change(folder, **{field: UNKNOWN[field]})
    with pytest.raises(UserError, match=f"config.json must hold only fields .*, got {field}=.*; n"):
        read_huggingface(folder)
    ignored = read_huggingface(folder, ignore_fields=[field])
    assert ignored.model == read_huggingface(GOLDEN / "huggingface" / "t5_1_1").model


def test_unknown_field_without_a_value_is_no_field(folder):
    change(folder, rope_scaling=None)
    read_huggingface(folder)


def test_many_unknown_fields_are_counted(folder):
    change(folder, **{f"field_{index}": index for index in range(9)})
    with pytest.raises(UserError, match="got field_0=0, .*, field_4=4 and 4 more; name those"):
        read_huggingface(folder)


@pytest.mark.parametrize(
    ("field", "why"), [("softcap", "which it does not have"), ("d_model", "which is known")]
)
def test_ignored_field_must_be_an_unknown_one(field, why, folder):
    with pytest.raises(UserError, match=f"unknown fields of .*config.json, got '{field}', {why}"):
        read_huggingface(folder, ignore_fields=[field])


# Fields of published configurations beyond those of transformers' classes, with their values.
PUBLISHED = {
    "umt5": {"scalable_attention": True, "tokenizer_class": "T5Tokenizer", "output_past": True},
    "t5": {"n_positions": 512, "task_specific_params": {"summarization": {"num_beams": 4}}},
    "t5, with gradient checkpointing": {"gradient_checkpointing": False, "num_labels": 2},
    "transformers 2": {"xla_device": None, "_num_labels": 2, "pruned_heads": {}},
    "transformers.js": {"transformers.js_config": {"dtype": "q8"}},
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_fields_of_published_configurations_are_known(case):
    assert unknown_fields(PUBLISHED[case], T5_FIELDS) == {}


def test_special_ids_are_carried_through_import_and_export(folder, tmp_path):
    change(folder, eos_token_id=2, decoder_start_token_id=5, pad_token_id=3)
    change(folder, "generation_config.json", eos_token_id=[2, 7], forced_bos_token_id=9)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    foreign = read_huggingface(folder)
    assert foreign.model.config.start_token == 5
    special = foreign.vocabulary.special
    assert (special.pad_id, special.eos_ids, special.forced_bos_id) == (3, (2, 7), 9)
    (tmp_path / "out").mkdir()
    write_huggingface(foreign, tmp_path / "out", np.dtype(np.float32), max_target_tokens=50)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    for written in (settings, generation):
        assert written["eos_token_id"] == [2, 7]
        assert written["decoder_start_token_id"] == 5
        assert written["pad_token_id"] == 3
        assert written["transformers_version"]
    assert generation["forced_bos_token_id"] == 9
    assert generation["max_length"] == 51
    card = (tmp_path / "out" / "README.md").read_text()
    assert "starts with token 5; targets end with [2, 7]; padding is 3" in card
    again = read_huggingface(tmp_path / "out")
    assert again.model == foreign.model
    assert again.vocabulary == foreign.vocabulary


def test_an_end_that_generate_does_not_use_is_named(folder):
    change(folder, eos_token_id=[1, 2])
    change(folder, "generation_config.json", eos_token_id=1)
    foreign = read_huggingface(folder)
    assert any("eos_token_id 2 of config.json ends no text" in r for r in foreign.remarks)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"decoder_start_token_id": 5}, {"decoder_start_token_id": 6}, "must be the same in"),
        (
            {"pad_token_id": 0},
            {"pad_token_id": 1},
            "pad_token_id must be the same in .* got 0 and 1",
        ),
        ({"eos_token_id": 47}, {}, r"must be a token id under vocab_size \(47\), got 47"),
        ({"eos_token_id": [1, "2"]}, {}, r"eos_token_id\[1\] must be a token id .*, got '2'"),
        ({"eos_token_id": []}, {}, "SpecialTokens.eos_ids must be a list of at least one"),
        ({"decoder_start_token_id": [5]}, {}, r"decoder_start_token_id must be .*, got \[5\]"),
    ],
)
def test_special_ids_that_contradict_each_other_are_rejected(first, second, message, folder):
    change(folder, "generation_config.json", **second)
    with pytest.raises(UserError, match=message):
        read_special_ids(folder, {**SETTINGS, **first}, T5_IDS)


def test_defaults_of_generate_are_named_in_a_remark(folder):
    change(folder, "generation_config.json", num_beams=4, top_k=50, min_p=0.1, use_cache=True)
    _, remarks = read_special_ids(folder, {**SETTINGS, "length_penalty": 2.0}, T5_IDS)
    (remark,) = remarks
    assert "not converted: length_penalty=2.0, min_p=0.1, num_beams=4; bind" in remark


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DistributedDataParallel"),
        ("base_model.model.", "PEFT"),
        ("module._orig_mod.", "torch.compile"),
        ("model.", "'model.'"),
        ("transformer.", "'transformer.'"),
        ("0.auto_model.", "sentence-transformers"),
        ("net.model.", "'net.model.'"),
    ],
)
def test_prefix_of_a_wrapper_is_removed_with_a_remark(prefix, wrapper, folder):
    usual = read_huggingface(GOLDEN / "huggingface" / "t5_1_1")
    change_tensors(folder, lambda tensors: {prefix + n: t for n, t in tensors.items()})
    foreign = read_huggingface(folder)
    assert any(wrapper in remark for remark in foreign.remarks)
    assert foreign.model == usual.model
    for name, array in usual.params.items():
        np.testing.assert_array_equal(foreign.params[name].load(), array.load())


def test_compiled_part_of_a_model_is_read(folder):
    change_tensors(
        folder,
        lambda tensors: {
            n.replace("encoder.", "encoder._orig_mod."): t for n, t in tensors.items()
        },
    )
    assert any("_orig_mod." in remark for remark in read_huggingface(folder).remarks)


def test_prefix_of_all_but_the_head_is_removed(folder):
    usual = read_huggingface(GOLDEN / "huggingface" / "t5_1_1").params
    change_tensors(folder, lambda t: {("model." if "lm" not in n else "") + n: t[n] for n in t})
    foreign = read_huggingface(folder)
    assert "the prefix 'model.' is removed from tensor names" in foreign.remarks
    for name, array in usual.items():
        np.testing.assert_array_equal(foreign.params[name].load(), array.load())


def test_tensors_with_and_without_a_prefix_are_rejected(folder):
    change_tensors(folder, lambda t: {**t, "module.shared.weight": t["shared.weight"]})
    with pytest.raises(UserError, match=r"with and without a prefix \(module.\): save it again"):
        read_huggingface(folder)


def test_tensors_of_two_models_are_rejected(folder):
    change_tensors(folder, lambda t: {p + n: t[n] for n in t for p in ("student.", "teacher.")})
    with pytest.raises(UserError, match="one model, got tensors under 'student.' and 'teacher.'"):
        read_huggingface(folder)


def test_adapter_weights_are_rejected_with_the_way_to_merge_them(folder):
    change_tensors(folder, lambda t: {**t, "x.lora_A.weight": t["shared.weight"]})
    with pytest.raises(UserError, match=r"x.lora_A.weight, .*merge_and_unload\(\)"):
        read_huggingface(folder)


def test_unsupported_class_is_named(folder):
    change(folder, architectures=["T5ForQuestionAnswering"])
    with pytest.raises(UserError, match="holds a T5ForQuestionAnswering, which is not supported"):
        read_huggingface(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_number_that_is_not_finite_is_rejected_by_tensor_and_index(value, folder):
    def break_one(tensors):
        tensors["encoder.block.1.layer.1.DenseReluDense.wo.weight"][3, 4] = value
        return tensors

    change_tensors(folder, break_one)
    name = "encoder/layers/mlp/wo/kernel"
    assert name in read_huggingface(folder).params
    with pytest.raises(UserError, match=r"block.1.*wo.weight must be finite, .* at index \[3, 4\]"):
        read_huggingface(folder).params[name].load()
    allowed = read_huggingface(folder, allow_nonfinite=True).params[name].load()
    assert (~np.isfinite(allowed)).sum() == 1


def test_number_that_float32_cannot_hold_is_not_finite(folder):
    def break_one(tensors):
        return {n: t.astype(np.float64) * (1e39 if "final" in n else 1) for n, t in tensors.items()}

    change_tensors(folder, break_one)
    with pytest.raises(UserError, match="final_layer_norm.weight must be finite"):
        read_huggingface(folder).params["encoder/encoder_norm/scale"].load()

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.interop.huggingface import read_huggingface
from t5lite.interop.merging import merge_adapters
from t5lite.interop.peft_files import read_peft, with_adapters, write_peft
from t5lite.models.ia3 import IA3
from t5lite.models.lora import LoRA
from t5lite.models.model import parameters
from t5lite.models.token_adapters import prompt_length
from tests.interop.comparison import TOLERANCE, batch_of, check_close, nested
from tests.proofs import proof

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
# Written by tests/interop/peft_adapters.py.
CASES = ("ia3", "rslora_dora")
READ = ("ia3", proof("rslora_dora"), proof("adalora"))
TENSORS = "adapter_model.safetensors"


def read(base, folder):
    """The frozen base with the adapter in a folder, in float32."""
    whole = read_huggingface(GOLDEN / "huggingface" / base)
    adapter, params = read_peft(folder, whole.model)
    model = with_adapters(whole.model, (adapter,))
    model = model.clone(config=dataclasses.replace(model.config, dtype="float32"))
    return dataclasses.replace(whole, model=model, params={**whole.params, **params})


def logits_of(foreign, base):
    """Logits of the base's inputs, and which of them count."""
    outputs = dict(np.load(GOLDEN / "huggingface" / base / "outputs.npz"))
    batch = batch_of(outputs, start=foreign.model.config.start_token)
    before = ((0, 0), (prompt_length(foreign.model.config.adapters), 0))
    for name, value in (("encoder_input_tokens", 0), ("encoder_segment_ids", 1)):
        batch[name] = jnp.pad(batch[name], before, constant_values=value)
    apply = jax.jit(lambda params: foreign.model.apply({"params": params}, batch))
    return np.asarray(apply(nested(dict(foreign.params)))), outputs["targets_mask"] > 0


@pytest.mark.parametrize("case", READ)
def test_an_adapter_of_peft_gives_its_logits_merged_and_unmerged(case):
    foreign = read("t5_1_1", GOLDEN / "peft" / case)
    wanted = np.load(GOLDEN / "peft" / case / "logits.npy")
    logits, counts = logits_of(foreign, "t5_1_1")
    check_close("logits", logits[counts], wanted[counts], TOLERANCE)
    merged = merge_adapters(foreign)
    assert not merged.model.config.adapters
    assert merged.params.keys() == parameters(merged.model).keys()
    logits, counts = logits_of(merged, "t5_1_1")
    check_close("logits of the merged model", logits[counts], wanted[counts], TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_written_as_peft_wrote_it(case, tmp_path):
    source = GOLDEN / "peft" / case
    foreign = read("t5_1_1", source)
    write_peft(foreign, tmp_path, "t5_1_1")
    theirs = safetensors.numpy.load_file(source / TENSORS)
    ours = safetensors.numpy.load_file(tmp_path / TENSORS)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    original = json.loads((source / "adapter_config.json").read_text())
    same = written.keys() - {"target_modules", "feedforward_modules", "task_type"}
    assert {name: written[name] for name in same} == {name: original[name] for name in same}
    assert written["task_type"] == "SEQ_2_SEQ_LM"
    modules = {name.rpartition(".lora_")[0] or name.rpartition(".ia3_")[0] for name in ours}
    assert {f"base_model.model.{name}" for name in written["target_modules"]} == modules
    assert read("t5_1_1", tmp_path).model == foreign.model


def test_pissa_is_written_as_twice_the_rank(rng, tmp_path):
    whole = read_huggingface(GOLDEN / "huggingface" / "t5_1_1")
    adapter = LoRA(rank=2, alpha=3.0, rank_stabilized=True, initialization="pissa")
    model = with_adapters(whole.model, (adapter,))
    params = dict(whole.params)
    for name, box in parameters(model).items():
        if "lora_" in name:
            values = rng.normal(size=box.value.shape).astype(np.float32)
            params[name] = LazyArray(values.shape, values.dtype, lambda values=values: values)
    foreign = dataclasses.replace(whole, model=model, params=params)
    write_peft(foreign, tmp_path, None)
    again, added = read_peft(tmp_path, whole.model)
    assert again.rank == 4
    name = "encoder/layers/attention/query/kernel"
    both = dataclasses.replace(
        whole, model=with_adapters(whole.model, (again,)), params={**whole.params, **added}
    )
    got = merge_adapters(both).params[name].load()
    wanted = merge_adapters(foreign).params[name].load()
    check_close("merged kernel", got, wanted, TOLERANCE)


def test_adalora_is_written_with_zeros_for_removed_values(tmp_path):
    foreign = read("t5_1_1", GOLDEN / "peft" / "adalora")
    theirs = safetensors.numpy.load_file(GOLDEN / "peft" / "adalora" / TENSORS)
    write_peft(foreign, tmp_path, None)
    ours = safetensors.numpy.load_file(tmp_path / TENSORS)
    assert ours.keys() == theirs.keys()
    ranks = set()
    for name, values in ours.items():
        if name.endswith(".lora_E"):
            kept = np.ravel(values) != 0
            factors = name.removesuffix("E")
            np.testing.assert_array_equal(values[kept], theirs[name])
            np.testing.assert_array_equal(ours[f"{factors}A"][kept], theirs[f"{factors}A"])
            np.testing.assert_array_equal(ours[f"{factors}B"][:, kept], theirs[f"{factors}B"])
            ranks.add(int(kept.sum()))
    assert len(ranks) > 1
    again = read("t5_1_1", tmp_path)
    assert again.model == foreign.model
    for name, array in foreign.params.items():
        np.testing.assert_array_equal(again.params[name].load(), array.load(), err_msg=name)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ([True, 1, False], "rank_pattern must have 3 truth values .init_r. for encoder.block.0"),
        (
            [True, False],
            "rank_pattern must have 3 truth values .init_r. for encoder.block.0.*q, got",
        ),
        ([True, True, True], "rank_pattern keeps 3 of encoder.block.0.*q, got a tensor of shape"),
    ],
)
def test_a_rank_pattern_that_does_not_fit_is_rejected(pattern, message, tmp_path):
    folder = pathlib.Path(shutil.copytree(GOLDEN / "peft" / "adalora", tmp_path / "a"))
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    name = "encoder.block.0.layer.0.SelfAttention.q.lora_E"
    assert name in config["rank_pattern"]
    config["rank_pattern"][name] = pattern
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read("t5_1_1", folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "CPT"}, "peft_type is unknown: got 'CPT'; .*PREFIX_TUNING"),
        ({"peft_type": "LOHA"}, "peft_type is unknown: got 'LOHA'; .*LORA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must leave the base as it is"),
        ({"rank_pattern": {"q": 3}}, "rank_pattern is not applied by t5lite, got {'q': 3}"),
        ({"bias": "all"}, "bias is not applied by t5lite, got 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is not applied by t5lite"),
        ({"modules_to_save": ["shared"]}, "modules_to_save is not applied by t5lite"),
        ({"use_of_next_year": 1}, "use_of_next_year is not applied by t5lite, got 1; merge"),
        ({"r": 3}, "r must be the rank of its tensors, 2, got 3"),
        ({"use_dora": False}, "holds lora_magnitude of .*, which its use_dora excludes"),
        ({"lora_alpha": None}, "lora_alpha must be a number, got None"),
    ],
)
def test_fields_that_would_change_the_result_are_rejected_by_name(changes, message, tmp_path):
    folder = pathlib.Path(shutil.copytree(GOLDEN / "peft" / "rslora_dora", tmp_path / "a"))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=message):
        read("t5_1_1", folder)


def test_tensors_that_do_not_fit_are_rejected_by_name(tmp_path):
    folder = pathlib.Path(shutil.copytree(GOLDEN / "peft" / "ia3", tmp_path / "a"))
    tensors = safetensors.numpy.load_file(folder / TENSORS)
    name = next(name for name in tensors if ".encoder.block.1." in name)
    rest = {key: value for key, value in tensors.items() if key != name}
    for changed, message in (
        (
            {**tensors, "base_model.model.encoder.x.ia3_l": tensors[name]},
            "encoder.x.ia3_l.*no ia3_l",
        ),
        (rest, "must hold ia3_scale of every layer of encoder.block.*none of layer 1"),
        ({**rest, name.replace("block.1", "block.2"): tensors[name]}, "holds layer 2 of enc"),
        ({**rest, name: tensors[name][:-1]}, r"must have shape|must be \(n, 1\)"),
    ):
        safetensors.numpy.save_file(changed, folder / TENSORS)
        with pytest.raises(UserError, match=message):
            read("t5_1_1", folder)
    (folder / TENSORS).unlink()
    with pytest.raises(UserError, match="adapter_model.safetensors does not exist; save the ad"):
        read("t5_1_1", folder)


def test_several_adapters_are_not_written_for_peft(tmp_path):
    whole = read_huggingface(GOLDEN / "huggingface" / "t5_1_1")
    foreign = dataclasses.replace(whole, model=with_adapters(whole.model, (LoRA(), IA3())))
    with pytest.raises(UserError, match="--to=peft writes one adapter .* got 2 of EncoderDecoder"):
        write_peft(foreign, tmp_path, None)

import dataclasses
import json
import pathlib
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from t5lite.core.errors import UserError
from t5lite.interop.merging import merge_adapters
from t5lite.interop.peft_files import write_peft
from t5lite.models.adapted_maps import with_adapters
from t5lite.models.adapters import Axis
from t5lite.models.prefix_tuning import PrefixTuning
from t5lite.models.prompt_tuning import PromptTuning, PTuning
from t5lite.models.token_adapters import InputSite
from tests.interop.comparison import TOLERANCE, check_close
from tests.interop.test_peft_files import GOLDEN, TENSORS, logits_of, read

PEFT = GOLDEN / "peft"


def changed(tmp_path, case, settings, tensor=lambda array: array):
    """A copy of a frozen adapter with other settings, and its tensor changed by a function."""
    folder = pathlib.Path(shutil.copytree(PEFT / case, tmp_path / "changed"))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    arrays = safetensors.numpy.load_file(folder / TENSORS)
    arrays = {name: tensor(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(arrays, folder / TENSORS)
    return folder


@pytest.mark.parametrize("case", ["prefix", "prompt"])
def test_a_prompt_of_peft_gives_its_logits_and_is_written_again(case, tmp_path):
    foreign = read("t5_1_1", PEFT / case)
    wanted = np.load(PEFT / case / "logits.npy")
    logits, counts = logits_of(foreign, "t5_1_1")
    check_close("logits", logits[counts], wanted[counts], TOLERANCE)

    write_peft(foreign, tmp_path, "t5_1_1")
    again = read("t5_1_1", tmp_path)
    assert again.model == foreign.model
    assert again.params.keys() == foreign.params.keys()
    for name in foreign.params:
        if "prefix" in name or "prompt" in name:
            values = again.params[name].load()
            np.testing.assert_array_equal(values, foreign.params[name].load(), err_msg=name)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    original = json.loads((PEFT / case / "adapter_config.json").read_text())
    same = ("peft_type", "task_type", "num_virtual_tokens", "num_transformer_submodules")
    for name in same if case == "prefix" else (*same, "token_dim"):
        assert written[name] == original[name], name


@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_networks_of_p_tuning_equal_those_of_peft(name):
    theirs = dict(np.load(PEFT / f"p_tuning_{name}.npz"))
    ours = {"prompt_embedding": theirs["embedding.weight"]}
    for number, layer in enumerate((0, 2, 4)):
        if f"mlp_head.{layer}.weight" in theirs:
            ours[f"prompt_mlp_{number}_kernel"] = theirs[f"mlp_head.{layer}.weight"].T
            ours[f"prompt_mlp_{number}_bias"] = theirs[f"mlp_head.{layer}.bias"]

    def both(part):
        ends = (part, f"{part}_reverse")
        return np.stack([theirs[f"lstm_head.{end}"] for end in ends])

    for number in range(2 if name == "lstm" else 0):
        for part, kernel in (("input", "ih"), ("state", "hh")):
            weight = both(f"weight_{kernel}_l{number}")
            ours[f"prompt_lstm_{number}_{part}_kernel"] = np.swapaxes(weight, 1, 2)
        bias = both(f"bias_ih_l{number}") + both(f"bias_hh_l{number}")
        ours[f"prompt_lstm_{number}_bias"] = bias

    def parameter(name, initializer, *axes):
        assert ours[name].shape == tuple(axis.size for axis in axes), name
        return jnp.asarray(ours.pop(name))

    site = InputSite(embed=Axis("activation_embed", 5), parameter=parameter)
    vectors = PTuning(length=4, hidden_dim=6, network=name).vectors(site)
    check_close("vectors", np.asarray(vectors), theirs["vectors"], TOLERANCE)
    assert not ours


@pytest.mark.parametrize(
    ("case", "settings", "tensor", "message"),
    [
        ("prefix", {"num_virtual_tokens": None}, None, "num_virtual_tokens of its conf.*got None"),
        ("prefix", {"num_layers": 1}, lambda x: x[:, :30], r"num_layers must be .* \(2\), got 1"),
        ("prefix", {"num_attention_heads": 5}, None, "must be those of keys of --base, 3 and 15"),
        ("prefix", {}, lambda x: x[:, :45], "prompt_embeddings.*shape"),
        ("prompt", {}, lambda x: x[:3], "prompt_embeddings.*shape"),
        ("prompt", {"use_of_next_year": 1}, None, "use_of_next_year is not applied by t5lite"),
    ],
)
def test_prompts_that_do_not_fit_are_rejected_by_name(case, settings, tensor, message, tmp_path):
    folder = changed(tmp_path, case, settings, tensor or (lambda array: array))
    with pytest.raises(UserError, match=message):
        read("t5_1_1", folder)


@pytest.mark.parametrize("adapter", [PrefixTuning(length=2), PromptTuning(length=2)])
def test_prompts_are_not_merged(adapter):
    whole = read("t5_1_1", PEFT / "prompt")
    foreign = dataclasses.replace(whole, model=with_adapters(whole.model, (adapter,)))
    message = f"{re.escape(str(adapter))} changes no linear map .* write it with --to=peft"
    with pytest.raises(UserError, match=message):
        merge_adapters(foreign)


def test_a_prefix_of_other_attention_is_not_written_for_peft(tmp_path):
    whole = read("t5_1_1", PEFT / "prompt")
    model = with_adapters(whole.model, (PrefixTuning(length=2),))
    with pytest.raises(UserError, match="writes a prefix of decoder/layers/self_attention alone"):
        write_peft(dataclasses.replace(whole, model=model), tmp_path, None)

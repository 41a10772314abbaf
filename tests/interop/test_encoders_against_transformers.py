"""BERT and ModernBERT against transformers (the extra `hf`), on fresh random weights and inputs."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.interop.huggingface import read_huggingface, write_huggingface
from t5lite.models.architectures import ModelApply
from tests.conftest import SEED
from tests.interop.comparison import TOLERANCE, check, check_close, nested

torch = pytest.importorskip("torch", reason="compares with torch: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

from tests.interop import transformers_encoders, transformers_stacks  # noqa: E402

CASES = sorted(transformers_encoders.CASES)


@pytest.fixture(autouse=True)
def quiet(seed):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("case", CASES)
def test_fresh_encoders_and_inputs_give_equal_results(case, tmp_path):
    transformers_encoders.make(case, tmp_path / case, SEED)
    check(tmp_path / case)


@pytest.mark.parametrize("case", CASES)
def test_exported_encoder_loads_in_transformers_with_equal_results(case, tmp_path):
    transformers_encoders.make(case, tmp_path / "a", SEED + 1)
    foreign = read_huggingface(tmp_path / "a")
    (tmp_path / "b").mkdir()
    write_huggingface(foreign, tmp_path / "b", np.dtype(np.float32))
    kind = transformers_encoders.CASES[case][0]
    model, info = kind.from_pretrained(tmp_path / "b", output_loading_info=True)
    # What is not read is not written: the pooler, and a bias that untied logits do not use.
    unread = {"cls.predictions.bias"} if case == "bert_untied" else set()
    assert {name for name in info["missing_keys"] if "pooler" not in name} == unread
    assert not info["unexpected_keys"]
    expected = dict(np.load(tmp_path / "a" / "outputs.npz"))
    given = {
        name: expected[name]
        for name in ("inputs", "inputs_mask", "targets", "token_types")
        if name in expected
    }
    double = transformers_stacks.load(kind, tmp_path / "b").double()
    real = expected["inputs_mask"] > 0
    for name, array in transformers_encoders.compute(double, given).items():
        pick = real if array.ndim else ...
        check_close(name, array[pick], expected[name][pick], TOLERANCE)
    # What its class saves is read, too.
    model.save_pretrained(tmp_path / "c")
    again = read_huggingface(tmp_path / "c")
    assert again.model == foreign.model
    for name, array in foreign.params.items():
        np.testing.assert_array_equal(array.load(), again.params[name].load())


def test_both_heads_of_bert_for_pretraining_are_read_and_written(tmp_path):
    torch.manual_seed(SEED)
    kind = transformers.BertForPreTraining
    model = kind(kind.config_class(**transformers_encoders.BERT)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "a")
    foreign = read_huggingface(tmp_path / "a")
    assert foreign.model.config.next_sentence
    tokens = np.random.default_rng(SEED).integers(3, 40, (2, 9))
    types = (np.arange(9) > 4).astype(int)[None].repeat(2, axis=0)
    batch = {
        "encoder_input_tokens": jnp.asarray(tokens),
        "encoder_segment_ids": jnp.ones((2, 9), jnp.int32),
        "encoder_token_types": jnp.asarray(types),
    }
    ours = foreign.model.clone(config=dataclasses.replace(foreign.model.config, dtype="float32"))
    apply = ModelApply(ours)
    params = nested(dict(foreign.params))
    hidden, _ = apply.hidden(params, batch)
    wanted = model.double()(torch.from_numpy(tokens), token_type_ids=torch.from_numpy(types))
    logits = apply.logits(params, hidden)
    check_close("logits", logits, wanted.prediction_logits.detach().numpy(), TOLERANCE)
    pairs = apply.head(params, "pair_logits", hidden)[:, 0]
    check_close("pairs", pairs, wanted.seq_relationship_logits.detach().numpy(), TOLERANCE)
    (tmp_path / "b").mkdir()
    write_huggingface(foreign, tmp_path / "b", np.dtype(np.float32))
    again, info = kind.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.float().state_dict()[name]), name


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_frozen_fields_of_encoders_are_those_of_transformers(name):
    path = transformers_stacks.GOLDEN.parent / "transformers_fields.json"
    kind = transformers_encoders.CASES[name][0].config_class
    assert set(kind().to_dict()) <= set(json.loads(path.read_text())[name])

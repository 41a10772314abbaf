"""The families after T5 against transformers (extra `hf`), on fresh random weights and inputs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.inference.beam_search import beam_search
from t5lite.inference.decoding import Decoding
from t5lite.inference.sampling import sample
from t5lite.interop.huggingface import read_huggingface, write_huggingface
from tests.conftest import SEED
from tests.interop.comparison import TOLERANCE, check, check_close, nested

torch = pytest.importorskip("torch", reason="compares with torch: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

from tests.interop import transformers_stacks  # noqa: E402

CASES = sorted(transformers_stacks.CASES)
WITHOUT_TOKENS = {"encoder", "classifier", "tagger"}
# Longer than the windows.
NEW_TOKENS = 9


@pytest.fixture(autouse=True)
def quiet(seed):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("case", CASES)
def test_fresh_weights_and_inputs_give_equal_results(case, tmp_path):
    transformers_stacks.make(case, tmp_path / case, SEED)
    check(tmp_path / case)


@pytest.mark.parametrize("case", CASES)
def test_export_loads_in_transformers_with_equal_logits(case, tmp_path):
    transformers_stacks.make(case, tmp_path / "a", SEED + 1)
    foreign = read_huggingface(tmp_path / "a")
    (tmp_path / "b").mkdir()
    write_huggingface(foreign, tmp_path / "b", np.dtype(np.float32))
    kind = transformers_stacks.CASES[case][0]
    if case == "gemma3_images":
        # It is written without what is for images.
        kind = transformers.Gemma3ForCausalLM
    model = transformers_stacks.load(kind, tmp_path / "b")
    model.save_pretrained(tmp_path / "c")
    outputs = dict(np.load(tmp_path / "a" / "outputs.npz"))
    names = ("inputs", "inputs_mask", "targets", "targets_mask", "labels")
    batch = {name: outputs[name] for name in names if name in outputs}
    made = transformers_stacks.compute(model.double(), batch)
    for name, array in made.items():
        mask = outputs["inputs_mask"]
        mask = mask if name == "encoded" else outputs.get("targets_mask", mask)
        is_whole = not array.ndim or (name == "logits" and "labels" in outputs)
        shown = ... if is_whole else mask > 0
        check_close(name, array[shown], outputs[name][shown], TOLERANCE)
    # What its class saves is read, too.
    again = read_huggingface(tmp_path / "c")
    assert again.model == foreign.model
    for name, array in foreign.params.items():
        np.testing.assert_array_equal(array.load(), again.params[name].load(), err_msg=name)


def test_frozen_fields_are_those_of_transformers():
    frozen = json.loads((transformers_stacks.GOLDEN.parent / "stack_fields.json").read_text())
    # JSON has lists instead of tuples, and texts as keys.
    assert frozen["fields"] == json.loads(json.dumps(transformers_stacks.class_fields()))


def prompts(model, rng):
    """Six rows of inputs as both take them; those of a decoder end in the last column."""
    columns = np.arange(11)
    counts = rng.integers(4, 12, (6, 1))
    mask = columns < counts if model.has_encoder else columns >= 11 - counts
    mask = mask.astype(np.int32)
    inputs = rng.integers(3, transformers_stacks.VOCAB_SIZE, mask.shape, np.int32) * mask
    stack = "encoder" if model.has_encoder else "decoder"
    batch = {f"{stack}_input_tokens": inputs, f"{stack}_segment_ids": mask}
    theirs = {"input_ids": torch.from_numpy(inputs).long(), "attention_mask": torch.tensor(mask)}
    return jax.tree.map(jnp.asarray, batch), theirs


def generated(model, theirs, **choices):
    """What transformers generates, [6, n, NEW_TOKENS]; tokens after the end are 0."""
    made = model.generate(
        **theirs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=2,
        **choices,
    )
    first = 1 if model.config.is_encoder_decoder else theirs["input_ids"].shape[1]
    tokens = made[:, first:].numpy().reshape(6, -1, made.shape[1] - first)
    ended = (tokens == 1).cumsum(2) - (tokens == 1) > 0
    missing = NEW_TOKENS - tokens.shape[2]
    return np.pad(np.where(ended, 0, tokens), ((0, 0), (0, 0), (0, missing)))


@pytest.mark.parametrize("case", [c for c in CASES if not WITHOUT_TOKENS & {*c.split("_")}])
def test_greedy_and_beam_outputs_equal_those_of_transformers(case, tmp_path):
    """Of all rows but those that rounding decides, in which transformers differs from itself."""
    transformers_stacks.make(case, tmp_path, SEED + 2)
    foreign = read_huggingface(tmp_path)
    model = foreign.model.clone(config=dataclasses.replace(foreign.model.config, dtype="float32"))
    params = nested(dict(foreign.params))
    batch, theirs = prompts(model, np.random.default_rng(SEED))
    kind = transformers_stacks.CASES[case][0]
    single = transformers_stacks.load(kind, tmp_path).float()
    double = transformers_stacks.load(kind, tmp_path).double()
    keys = jax.random.split(jax.random.key(0), 6)
    limits = {"length": NEW_TOKENS, "stop_ids": (1,)}
    greedy = jax.jit(lambda p, b: sample(model, p, b, Decoding(), keys=keys, **limits))
    beams = Decoding(
        num_beams=3, length_penalty=1.0, length_normalization="tokens", early_stopping="never"
    )
    search = jax.jit(lambda p, b: beam_search(model, p, b, beams, **limits))
    wide = {"num_beams": 3, "num_return_sequences": 3, "early_stopping": "never"}
    for decode, choices in ((greedy, {"num_beams": 1}), (search, wide)):
        tokens = generated(double, theirs, **choices)
        rows = (tokens == generated(single, theirs, **choices)).all(axis=(1, 2))
        assert rows.sum() >= 4, "rounding decides more than two rows"
        decoded = np.asarray(decode(params, batch).tokens)
        np.testing.assert_array_equal(decoded[rows], tokens[rows])

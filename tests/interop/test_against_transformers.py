"""Against transformers (the extra `hf`), on fresh random weights and inputs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.inference.beam_search import beam_search
from t5lite.inference.decoding import Decoding
from t5lite.interop.foreign import Foreign
from t5lite.interop.huggingface import read_huggingface, write_huggingface
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.config import T5Config
from tests.conftest import SEED
from tests.interop.comparison import TOLERANCE, batch_of, check, check_close

torch = pytest.importorskip("torch", reason="compares with torch: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

from tests.interop import transformers_models  # noqa: E402

CASES = sorted(transformers_models.CASES)
GOLDEN = transformers_models.GOLDEN


@pytest.fixture(autouse=True)
def quiet(seed):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("case", CASES)
def test_fresh_weights_and_inputs_give_equal_results(case, tmp_path):
    transformers_models.make(case, tmp_path / case, SEED)
    check(tmp_path / case)


@pytest.mark.parametrize("case", CASES)
def test_export_loads_in_transformers_with_equal_logits(case, tmp_path):
    transformers_models.make(case, tmp_path / "a", SEED + 1)
    foreign = read_huggingface(tmp_path / "a")
    (tmp_path / "b").mkdir()
    write_huggingface(foreign, tmp_path / "b", np.dtype(np.float32))
    kind = transformers_models.CASES[case][0]
    outputs = dict(np.load(tmp_path / "a" / "outputs.npz"))
    check_transformers(kind, tmp_path / "b", outputs, TOLERANCE)
    # What its class saves is read, too.
    model = transformers_models.load(kind, tmp_path / "b")
    model.save_pretrained(tmp_path / "c")
    again = read_huggingface(tmp_path / "c")
    assert again.model == foreign.model
    for name, array in foreign.params.items():
        np.testing.assert_allclose(array.load(), again.params[name].load(), rtol=1e-6)


def check_transformers(kind, folder, outputs, tolerance):
    model = transformers_models.load(kind, folder).double()
    batch = {
        n: outputs[n]
        for n in ("inputs", "inputs_mask", "targets", "targets_mask", "labels")
        if n in outputs
    }
    made, _ = transformers_models.compute(model, batch)
    for name in made:
        shown = outputs.get("targets_mask", outputs["inputs_mask"]) > 0
        shown = outputs["inputs_mask"] > 0 if name == "encoded" else shown
        is_whole = name == "loss" or (name == "logits" and "labels" in outputs)
        pick = ... if is_whole else shown
        check_close(name, made[name][pick], outputs[name][pick], tolerance)


@pytest.mark.parametrize("positions", ["shared_bias", "layer_bias"])
def test_exported_model_with_its_own_logits_has_equal_logits(positions, tmp_path):
    from tests import small

    model = EncoderDecoder(small.config(positions=positions))
    params = small.params(model)
    foreign = Foreign(model=model, params=lazily(params))
    remarks = write_huggingface(foreign, tmp_path, np.dtype(np.float32))
    assert any("multiplied by sqrt" in r for r in remarks) == (positions == "layer_bias")
    kind = transformers.AutoModelForSeq2SeqLM
    theirs = transformers_models.load(kind, tmp_path)
    rng = np.random.default_rng(SEED)
    batch = transformers_models.random_batch(rng, has_decoder=True, labels=2)
    made, _ = transformers_models.compute(theirs, batch)
    logits = small.logits(model, params, batch_of(batch))
    real = batch["targets_mask"] > 0
    check_close("logits", logits[real], made["logits"][real], TOLERANCE)
    again = read_huggingface(tmp_path)
    assert again.model == model.clone(config=dataclasses.replace(model.config, dtype="bfloat16"))


def test_frozen_fields_are_those_of_transformers():
    frozen = json.loads((GOLDEN.parent / "transformers_fields.json").read_text())
    kinds = [getattr(transformers, f"{name}Config") for name in ("T5", "MT5", "UMT5", "LongT5")]
    fields = {field for kind in kinds for field in kind().to_dict()}
    assert fields <= set(frozen["config"])
    assert set(transformers.GenerationConfig().to_dict()) <= set(frozen["generation_config"])


# transformers' values of early_stopping, by ours.
EARLY_STOPPING = {"never": "never", "heuristic": False, "full": True}


# Of sums of up to ten log-probabilities in float32: about 4e-6 is seen.
SCORE_TOLERANCE = 3e-5


def their_beams(model, inputs, mask, alpha, rule):
    """Returns the tokens and scores of beam search in transformers, [6, 4, 10] and [6, 4]."""
    made = model.generate(
        input_ids=torch.from_numpy(inputs).long(),
        attention_mask=torch.from_numpy(mask).long(),
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=10,
        length_penalty=alpha,
        early_stopping=EARLY_STOPPING[rule],
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    tokens = made.sequences.numpy()[:, 1:].reshape(6, 4, -1)
    # Theirs have ends after the first one, too.
    tokens = np.where((tokens == 1).cumsum(2) - (tokens == 1) > 0, 0, tokens)
    tokens = np.pad(tokens, ((0, 0), (0, 0), (0, 10 - tokens.shape[2])))
    return tokens, made.sequences_scores.numpy().reshape(6, 4)


@pytest.mark.parametrize("rule", EARLY_STOPPING)
def test_beams_and_their_scores_equal_those_of_transformers(rule, tmp_path):
    """Of all rows but those that rounding decides, in which transformers differs from itself."""
    from tests import small

    print(f"seed {SEED}")
    # So few pieces that targets end at different lengths.
    model = EncoderDecoder(small.config(vocab_size=12))
    params = small.params(model, seed=SEED % 1000)
    # Sharper logits; larger weights in the layers would multiply the errors of rounding.
    logits = jax.tree.map(lambda kernel: kernel * 3.0, params["decoder"]["logits_dense"])
    params = {**params, "decoder": {**params["decoder"], "logits_dense": logits}}
    write_huggingface(Foreign(model=model, params=lazily(params)), tmp_path, np.dtype(np.float32))
    kind = transformers.AutoModelForSeq2SeqLM
    single = transformers_models.load(kind, tmp_path).float()
    double = transformers_models.load(kind, tmp_path).double()
    rng = np.random.default_rng(SEED)
    inputs = rng.integers(2, 12, (6, 9)).astype(np.int32)
    mask = (np.arange(9) < rng.integers(4, 10, (6, 1))).astype(np.int32)
    batch = jax.tree.map(
        jnp.asarray, {"encoder_input_tokens": inputs * mask, "encoder_segment_ids": mask}
    )
    search = jax.jit(lambda p, b, d: beam_search(model, p, b, d, length=10, stop_ids=(1,)))
    for alpha in (0.0, 0.6, 1.0, 2.0):
        tokens, scores = their_beams(double, inputs, mask, alpha, rule)
        rounded, _ = their_beams(single, inputs, mask, alpha, rule)
        rows = (tokens == rounded).all(axis=(1, 2))
        assert rows.sum() >= 5, "rounding decides more than one row"
        decoding = Decoding(
            num_beams=4,
            length_penalty=alpha,
            length_normalization="tokens",
            early_stopping=rule,
        )
        decoded = search(params, batch, decoding)
        np.testing.assert_array_equal(np.asarray(decoded.tokens)[rows], tokens[rows])
        found = np.asarray(decoded.scores)
        np.testing.assert_allclose(found[rows], scores[rows], atol=SCORE_TOLERANCE, rtol=0)


def lazily(params):
    from t5lite.core.lazy import LazyArray, by_name

    def lazy(array):
        return LazyArray(array.shape, np.dtype(np.float32), lambda: np.asarray(array))

    return {name: lazy(array) for name, array in by_name(params).items()}


def test_rotary_positions_grouped_heads_and_swiglu_equal_llama():
    config = T5Config(
        vocab_size=47,
        embed_dim=20,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        mlp_dim=22,
        num_decoder_layers=3,
        positions="rotary",
        mlp_activations=("silu", "linear"),
        dtype="float32",
    )
    llama = transformers.LlamaConfig(
        vocab_size=47,
        hidden_size=20,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=22,
        num_hidden_layers=3,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    torch.manual_seed(SEED)
    theirs = transformers.LlamaForCausalLM(llama).eval().double()
    for parameter in theirs.parameters():
        parameter.data = (
            torch.rand_like(parameter) + 0.5
            if parameter.ndim == 1
            else (0.4 * torch.randn_like(parameter))
        )
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}

    def layers(name, shape, scale=1.0):
        each = [weights[f"model.layers.{i}.{name}.weight"].T.reshape(shape) for i in range(3)]
        return scale * np.stack(each)

    params = {
        "token_embedder/embedding": weights["model.embed_tokens.weight"],
        "decoder/decoder_norm/scale": weights["model.norm.weight"],
        "decoder/logits_dense/kernel": weights["lm_head.weight"].T,
        "decoder/layers/pre_self_attention_layer_norm/scale": layers("input_layernorm", (20,)),
        "decoder/layers/pre_mlp_layer_norm/scale": layers("post_attention_layernorm", (20,)),
        # Llama divides scores by sqrt(d), T5 does not.
        "decoder/layers/self_attention/query/kernel": layers(
            "self_attn.q_proj", (20, 4, 6), 6**-0.5
        ),
        "decoder/layers/self_attention/key/kernel": layers("self_attn.k_proj", (20, 2, 6)),
        "decoder/layers/self_attention/value/kernel": layers("self_attn.v_proj", (20, 2, 6)),
        "decoder/layers/self_attention/out/kernel": layers("self_attn.o_proj", (4, 6, 20)),
        "decoder/layers/mlp/wi_0/kernel": layers("mlp.gate_proj", (20, 22)),
        "decoder/layers/mlp/wi_1/kernel": layers("mlp.up_proj", (20, 22)),
        "decoder/layers/mlp/wo/kernel": layers("mlp.down_proj", (22, 20)),
    }
    tokens = np.random.default_rng(SEED).integers(0, 47, (2, 9)).astype(np.int32)
    expected = theirs(torch.from_numpy(tokens).long()).logits.detach().numpy()
    from flax.traverse_util import unflatten_dict

    tree = unflatten_dict({n: jnp.asarray(a, jnp.float32) for n, a in params.items()}, sep="/")
    batch = {"decoder_input_tokens": tokens, "decoder_segment_ids": np.ones_like(tokens)}
    batch = jax.tree.map(jnp.asarray, batch)
    check_close("logits", DecoderOnly(config).apply({"params": tree}, batch), expected, TOLERANCE)

import dataclasses
import functools
import json
import pathlib
import pickle
import shutil

import ml_dtypes
import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import load_file, save_file
from sentencepiece import sentencepiece_model_pb2

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray, by_name
from t5lite.interop import tensor_files
from t5lite.interop.foreign import Foreign
from t5lite.interop.huggingface import read_huggingface, write_huggingface
from t5lite.interop.tokenizer_files import read_tokenizer
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from t5lite.models.classifier import Classes
from tests import small
from tests.interop.comparison import check
from tests.proofs import proofs_but

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "huggingface"
CASES = sorted(path.name for path in GOLDEN.iterdir())
# One of each kind of model; the others are proofs.
FAMILIES = ("t5_1_1", "t5gemma2", "bert_model")


@pytest.mark.parametrize("case", proofs_but(FAMILIES, CASES))
def test_logits_states_loss_and_gradients_equal_those_of_transformers(case):
    check(GOLDEN / case)


@pytest.mark.parametrize("case", CASES)
def test_written_checkpoint_is_read_back_unchanged(case, tmp_path):
    foreign = read_huggingface(GOLDEN / case)
    write_huggingface(foreign, tmp_path, np.dtype(np.float32))
    again = read_huggingface(tmp_path)
    assert again.model == foreign.model
    for name, array in foreign.params.items():
        np.testing.assert_array_equal(array.load(), again.params[name].load(), err_msg=name)


def test_end_of_image_token_is_optional(tmp_path):
    foreign = read_huggingface(GOLDEN / "t5gemma2")
    config = dataclasses.replace(foreign.model.config, end_of_image_token=None)
    params = {n: a for n, a in foreign.params.items() if n != "token_embedder/end_of_image"}
    without = dataclasses.replace(foreign, model=EncoderDecoder(config), params=params, kept=None)
    write_huggingface(without, tmp_path, np.dtype(np.float32))
    again = read_huggingface(tmp_path)
    assert again.model == without.model
    assert again.params.keys() == params.keys()


@pytest.fixture
def folder(tmp_path):
    """A copy of a checkpoint, to break."""
    shutil.copytree(GOLDEN / "t5_1_1", tmp_path / "c")
    return tmp_path / "c"


def change_config(folder, **changes):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **changes}))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_pickle(folder):
    (folder / "model.safetensors").unlink()
    # Unpickling would create a file.
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(folder / "unpickled")))


def pickle_by_another_name(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(folder / "unpickled")))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


BROKEN = {
    "truncated": (
        truncate,
        "must be a whole safetensors file, got one that is truncated or damaged",
    ),
    "empty": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "must be a whole safetensors file",
    ),
    "pickle": (only_pickle, "got only pytorch_model.bin, which is not read: pickles run code"),
    "hidden_pickle": (pickle_by_another_name, "must be a whole safetensors file"),
    "no_config": (lambda f: (f / "config.json").unlink(), "config.json does not exist"),
    "no_json": (lambda f: (f / "config.json").write_text("{"), "config.json must be a JSON file"),
    "list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object, got list"),
    "family": (
        lambda f: change_config(f, model_type="bart"),
        "config.json: model_type is unknown: got 'bart'; .*bert",
    ),
    "size": (
        lambda f: change_config(f, d_kv="5"),
        "must have d_kv, a whole number > 0 .*, got '5'",
    ),
    "missing_size": (lambda f: change_config(f, d_ff=None), "must have d_ff, a whole number > 0"),
    "activation": (
        lambda f: change_config(f, feed_forward_proj="gated-gelo"),
        "feed_forward_proj is unknown: got 'gated-gelo'; did you mean 'gated-gelu'",
    ),
    "shape": (
        lambda f: change_config(f, d_ff=23),
        r"DenseReluDense.wi_0.weight must have shape \(23, 14\) by .*, got \(22, 14\)",
    ),
    "heads": (lambda f: change_config(f, num_heads=5), r"shape \(25, 14\) .* got \(15, 14\)"),
    "layers": (
        lambda f: change_config(f, num_layers=3),
        "does not hold encoder.block.2.* and 8 more, which its model needs",
    ),
    "plain": (
        lambda f: change_config(f, feed_forward_proj="relu"),
        "does not hold decoder.block.0.layer.2.DenseReluDense.wi.weight",
    ),
    "unknown": (
        lambda f: change_tensors(f, lambda t: t.update({"other.a": np.ones(3, np.float32)})),
        "holds other.a, which its model does not have",
    ),
    "two_embeddings": (
        lambda f: change_tensors(
            f, lambda t: t.update({"encoder.embed_tokens.weight": t["shared.weight"] + 1})
        ),
        "encoder.embed_tokens.weight must equal shared.weight",
    ),
    "null": (
        lambda f: change_config(f, feed_forward_proj=None),
        "feed_forward_proj is unknown: got None",
    ),
    "number": (
        lambda f: change_config(f, layer_norm_epsilon="1e-6"),
        "must have layer_norm_epsilon, a number > 0, got '1e-6'",
    ),
    "tied": (
        lambda f: change_config(f, tie_word_embeddings="false"),
        "config.json: tie_word_embeddings must be true or false, got 'false'",
    ),
    "scaled": (
        lambda f: change_config(f, scale_decoder_outputs=0),
        "config.json: scale_decoder_outputs must be true or false, got 0",
    ),
    "classes": (
        lambda f: change_config(f, architectures="T5ForConditionalGeneration"),
        "architectures must be a list, got 'T5ForConditionalGeneration'",
    ),
    "activation_list": (
        lambda f: change_config(f, dense_act_fn=["relu"]),
        r"dense_act_fn is unknown: got \['relu'\]",
    ),
    "twice": (
        lambda f: (f / "config.json").write_text('{"d_kv": 5, "d_kv": 6}'),
        "config.json must be a JSON file: the key 'd_kv' is repeated",
    ),
    "index_of_numbers": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 5}}'),
        "must have a weight_map from tensors to files",
    ),
    "decoder_layers": (
        lambda f: change_config(f, num_decoder_layers="2"),
        "num_decoder_layers must be a whole number >= 0, got '2'",
    ),
    "buckets": (
        lambda f: change_config(f, relative_attention_num_buckets=1),
        "config.json does not describe a T5: T5Config.num_buckets must be at least",
    ),
    "decoder_lost": (
        lambda f: (
            change_config(f, architectures=["T5ForConditionalGeneration"]),
            change_tensors(f, lambda t: [t.pop(n) for n in list(t) if n.startswith("decoder")]),
        ),
        "does not hold decoder.block.0",
    ),
    "quantised": (
        lambda f: change_tensors(
            f,
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(np.int8)}),
        ),
        "lm_head.weight must be of float32, .*, got I8; save the checkpoint again",
    ),
    "huge": (lambda f: change_config(f, vocab_size=2**40), "under 10,000,000, got 1099511627776"),
    "too_deep": (
        lambda f: change_config(f, num_layers=9_999_999),
        "holds 52 tensors, too few for 9999999 layers",
    ),
    "sentinels": (
        lambda f: (f / "tokenizer_config.json").write_text('{"extra_ids": "x"}'),
        "extra_ids must be a whole number >= 0, got 'x'",
    ),
    "index": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}'),
        "b does not exist, but the index names it",
    ),
    "index_elsewhere": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}'),
        "must name files beside it, got '../b'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_or_inconsistent_checkpoint_is_rejected(case, folder):
    change, message = BROKEN[case]
    change(folder)
    with pytest.raises(UserError, match=message):
        read_huggingface(folder)
    assert not (folder / "unpickled").exists()


def test_several_files_are_written_with_an_index_and_read_back(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(tensor_files, "FILE_BYTES", 2000)
    foreign = read_huggingface(folder)
    (tmp_path / "out").mkdir()
    write_huggingface(foreign, tmp_path / "out", np.dtype(np.float32))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert len(files) > 3
    assert index["metadata"]["total_size"] == 4 * sum(a.size for a in foreign.params.values())
    again = read_huggingface(tmp_path / "out")
    for name, array in foreign.params.items():
        np.testing.assert_array_equal(array.load(), again.params[name].load())
    (tmp_path / "out" / files[1]).unlink()
    with pytest.raises(UserError, match="does not exist, but the index names it"):
        read_huggingface(tmp_path / "out")


def test_half_precision_is_read_and_written(folder, tmp_path):
    foreign = read_huggingface(folder)
    write_huggingface(foreign, tmp_path, np.dtype(ml_dtypes.bfloat16))
    again = read_huggingface(tmp_path)
    for name, array in foreign.params.items():
        expected = array.load().astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(again.params[name].load(), expected)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (DecoderOnly(small.decoder_config()), "no counterpart of T5Config.positions 'shared_bias'"),
        (
            EncoderDecoder(small.config(positions="rotary")),
            "T5Gemma of transformers has no counterpart of T5Config.norm 'rms'",
        ),
        (
            EncoderDecoder(small.config(mlp_activations=("relu", "relu"))),
            "no counterpart of T5Config.mlp_activations",
        ),
        (EncoderDecoder(small.config(num_kv_heads=1)), "no counterpart of T5Config.num_kv_heads 1"),
        (EncoderDecoder(small.config(num_experts=4)), "no counterpart of T5Config.num_experts 4"),
        (
            EncoderOnly(small.config(num_decoder_layers=0), Classes(count=2, per_token=False)),
            "no counterpart of Classes.per_token False",
        ),
        (
            EncoderOnly(
                small.config(num_decoder_layers=0, encoder_attention="local"),
                Classes(count=2, per_token=True),
            ),
            "no counterpart of Classes and 'local' attention",
        ),
    ],
)
def test_models_without_a_transformers_class_are_rejected(model, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_huggingface(Foreign(model=model, params={}), tmp_path, np.dtype(np.float32))


def test_sentinels_among_the_pieces_of_the_model_are_counted(tmp_path):
    pieces = [f"<extra_id_{index}>" for index in reversed(range(7))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some text to train on"] * 50),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=40,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((tmp_path / "spiece.model").read_bytes())
    for piece in pieces:
        model.pieces.add(piece=piece, score=0.0, type=4)
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    vocabulary, _ = read_tokenizer(tmp_path)
    assert (vocabulary.num_sentinels, vocabulary.sentinels_in_model) == (7, True)
    assert vocabulary.size == len(model.pieces)
    text = vocabulary.decode(np.array([vocabulary.sentinel(0), vocabulary.sentinel(6)]))
    assert text == "<extra_id_0><extra_id_6>"


def test_token_logits_of_an_encoder_are_not_written(tmp_path):
    model = EncoderOnly(small.config(num_decoder_layers=0))
    params = {
        name: LazyArray(array.shape, np.dtype(np.float32), functools.partial(np.asarray, array))
        for name, array in by_name(small.params(model)).items()
    }
    remarks = write_huggingface(Foreign(model=model, params=params), tmp_path, np.dtype(np.float32))
    assert "the logits of tokens are not written: T5EncoderModel has none" in remarks
    again = read_huggingface(tmp_path)
    assert again.params.keys() == params.keys() - {"logits_dense/kernel"}


def test_tensor_is_read_from_the_file_that_the_index_names(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stale = {"shared.weight": tensors["shared.weight"] * 0}
    save_file(tensors, folder / "a.safetensors")
    save_file(stale, folder / "b.safetensors")
    places = dict.fromkeys(tensors, "a.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**places, "lm_head.weight": "b.safetensors"}}))
    with pytest.raises(UserError, match="has lm_head.weight in b.safetensors, which does not"):
        read_huggingface(folder)
    save_file({"lm_head.weight": tensors["lm_head.weight"], **stale}, folder / "b.safetensors")
    with pytest.raises(
        UserError, match="holds .*, which model.safetensors.index.json does not name"
    ):
        read_huggingface(folder)


def test_full_disk_is_detected_before_writing(folder, tmp_path, monkeypatch):
    foreign, usage = read_huggingface(folder), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="the checkpoint needs .* bytes, but .* has 1,000 left"):
        write_huggingface(foreign, tmp_path / "out", np.dtype(np.float32))
    assert list((tmp_path / "out").iterdir()) == []

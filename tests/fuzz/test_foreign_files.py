"""Damaged files of Hugging Face and T5X end in one line: configurations, tokenizers and tensors."""

import json
import math
import pathlib
import shutil

import flax.serialization
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from t5lite.core.errors import UserError, check_choice
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import SentencePieceVocabulary
from t5lite.interop import tokenizer_files
from t5lite.interop.families import FAMILIES
from t5lite.interop.field_groups import check_known, check_required
from t5lite.interop.foreign import StoredArray
from t5lite.interop.generation_settings import T5_IDS, read_special_ids
from t5lite.interop.huggingface import read_huggingface
from t5lite.interop.t5x import read_t5x
from t5lite.interop.t5x_files import stored_arrays
from t5lite.interop.tensor_files import read_json, stored_tensors
from t5lite.interop.tokenizer_files import read_tokenizer, write_tokenizer
from tests.fuzz.harness import attack, attack_from
from tests.fuzz.mutation import mutations
from tests.small_tokenizer import small_model

pytestmark = pytest.mark.proof

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "huggingface"
CASES = sorted(GOLDEN.iterdir())
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def attack_file(name, path, read, samples, names, seed):
    """Writes damaged contents of a JSON file to `path` and calls `read`."""

    def of_bytes(content):
        path.write_bytes(content)
        read()

    attack(name, of_bytes, mutations(samples, seed), seed)
    base = json.loads(samples[0])
    changes = st.dictionaries(st.sampled_from(sorted(names)), VALUES, max_size=4)
    attack_from(name, lambda some: of_bytes(json.dumps({**base, **some}).encode()), changes, seed)


def in_memory(folder):
    """Returns the tensors of a folder without a file for each read."""
    return {
        name: StoredArray(array.shape, array.dtype.name, lambda rows, array=array: array[rows])
        for name, array in load_file(folder / "model.safetensors").items()
    }


def test_config_json(seed, memory_dir):
    samples = [(case / "config.json").read_bytes() for case in CASES]
    names = {name for sample in samples for name in json.loads(sample)}
    tensors = in_memory(GOLDEN / "t5_1_1")

    def read():
        settings = read_json(memory_dir / "config.json")
        kind = settings.get("model_type")
        check_choice("config.json: model_type", kind, FAMILIES)
        check_known(settings, FAMILIES[kind].fields, (), "config.json")
        check_required(settings, FAMILIES[kind].fields, "config.json")
        FAMILIES[kind].read(settings, dict(tensors), str(memory_dir))
        read_special_ids(memory_dir, FAMILIES[kind].flat_ids(settings), FAMILIES[kind].usual_ids)

    attack_file("config.json", memory_dir / "config.json", read, samples, names, seed)


def test_generation_config_json(seed, memory_dir):
    settings = json.loads((GOLDEN / "t5_1_1" / "config.json").read_text())
    sample = {
        "eos_token_id": [1, 7],
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "forced_bos_token_id": 9,
        "num_beams": 4,
        "suppress_tokens": [3],
        "temperature": 0.5,
    }
    attack_file(
        "generation_config.json",
        memory_dir / "generation_config.json",
        lambda: read_special_ids(memory_dir, settings, T5_IDS),
        [json.dumps(sample).encode()],
        sample,
        seed,
    )


def read_and_forget(folder):
    try:
        vocabulary, _ = read_tokenizer(folder)
        if vocabulary is not None:
            vocabulary.decode(vocabulary.encode("the <sep> cat <extra_id_0>sat"))
    finally:
        # The file of a rebuilt model.
        tokenizer_files._rebuilt_models.close()


def test_tokenizer_config_json(seed, memory_dir):
    (memory_dir / "spiece.model").write_bytes(small_model())
    token = {"lstrip": False, "rstrip": True, "single_word": False, "special": True}
    decoder = {str(i): {"content": t, **token} for i, t in ((0, "<pad>"), (160, "<sep>"))}
    usual = {"added_tokens_decoder": decoder, "extra_ids": 100, "pad_token": "<pad>"}
    samples = [
        {**usual, "tokenizer_class": "T5Tokenizer", "legacy": False, "model_max_length": 512},
        {**usual, "tokenizer_class": "ByT5Tokenizer", "extra_ids": 125},
    ]
    attack_file(
        "tokenizer_config.json",
        memory_dir / "tokenizer_config.json",
        lambda: read_and_forget(memory_dir),
        [json.dumps(sample).encode() for sample in samples],
        samples[0],
        seed,
    )


def test_added_tokens_json(seed, memory_dir):
    (memory_dir / "spiece.model").write_bytes(small_model())
    sample = {"<pad>": 0, "<sep>": 160, "<extra_id_0>": 159, "<extra_id_99>": 60}
    attack_file(
        "added_tokens.json",
        memory_dir / "added_tokens.json",
        lambda: read_and_forget(memory_dir),
        [json.dumps(sample).encode()],
        {*sample, "<extra_id_500>", "x"},
        seed,
    )


def test_tokenizer_json(seed, memory_dir):
    (memory_dir / "a.model").write_bytes(small_model())
    special = SpecialTokens(added_tokens={"<sep>": 160})
    # A small file makes more cases a second.
    vocabulary = SentencePieceVocabulary(
        path=str(memory_dir / "a.model"), num_sentinels=4, special=special
    )
    write_tokenizer(vocabulary, memory_dir)
    (memory_dir / "spiece.model").unlink()
    sample = (memory_dir / "tokenizer.json").read_bytes()
    attack_file(
        "tokenizer.json",
        memory_dir / "tokenizer.json",
        lambda: read_and_forget(memory_dir),
        [sample],
        json.loads(sample),
        seed,
    )


def test_sentencepiece_model(seed, memory_dir):
    path = memory_dir / "spiece.model"

    def read(content):
        path.write_bytes(content)
        read_and_forget(memory_dir)

    attack("spiece.model", read, mutations([small_model()], seed), seed)
    attack_from("spiece.model", read, st.binary(), seed)


@pytest.fixture
def tensors(memory_dir):
    """A folder with two files and an index."""
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": rng.normal(size=5).astype(np.float16),
        "c": np.ones((), np.float32),
    }
    save_file({"a": arrays["a"], "b": arrays["b"]}, memory_dir / "one.safetensors")
    save_file({"c": arrays["c"]}, memory_dir / "two.safetensors")
    files = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    listing = {"metadata": {}, "weight_map": files}
    (memory_dir / "model.safetensors.index.json").write_text(json.dumps(listing))
    return memory_dir


def read_small(arrays):
    for stored in arrays.values():
        if math.prod(stored.shape) < 10**6:
            stored.read(...)


def test_safetensors_index(seed, tensors):
    path = tensors / "model.safetensors.index.json"
    sample = path.read_bytes()
    attack_file(
        "safetensors index",
        path,
        lambda: read_small(stored_tensors(tensors)),
        [sample],
        json.loads(sample),
        seed,
    )


def test_safetensors(seed, tensors):
    sample = (tensors / "one.safetensors").read_bytes()
    (tensors / "model.safetensors.index.json").unlink()

    def read(content):
        (tensors / "model.safetensors").write_bytes(content)
        read_small(stored_tensors(tensors))

    attack("safetensors", read, mutations([sample], seed), seed)
    attack_from("safetensors", read, st.binary(), seed)


T5X = {
    "version": 3,
    "optimizer": {
        "target": {"a": {"kernel": np.ones((2, 3), np.float32)}, "b": "PLACEHOLDER://b"},
        "state": {
            "step": np.int32(7),
            "c": {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": "c/"},
                "metadata": {"shape": [2, 3]},
            },
        },
    },
}
ZARRAY = {
    "chunks": [2, 2],
    "compressor": None,
    "dimension_separator": ".",
    "dtype": "<f4",
    "fill_value": 0,
    "filters": None,
    "order": "C",
    "shape": [2, 3],
    "zarr_format": 2,
}


def write_zarr(folder):
    folder.mkdir()
    (folder / ".zarray").write_text(json.dumps(ZARRAY))
    for chunk in ("0.0", "0.1"):
        (folder / chunk).write_bytes(np.ones((2, 2), "<f4").tobytes())


def test_msgpack_of_t5x(seed, memory_dir):
    for name in ("b", "c"):
        write_zarr(memory_dir / name)
    path = memory_dir / "checkpoint"

    def read(content):
        path.write_bytes(content)
        read_small(stored_arrays(memory_dir))

    attack("msgpack", read, mutations([flax.serialization.to_bytes(T5X)], seed), seed)
    attack_from("msgpack", read, st.binary(), seed)


def test_zarray_of_t5x(seed, memory_dir):
    write_zarr(memory_dir / "b")
    tree = {"target": {"b": "PLACEHOLDER://b"}, "state": {"step": np.int32(1)}}
    (memory_dir / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    path = memory_dir / "b" / ".zarray"
    attack_file(
        "zarray",
        path,
        lambda: read_small(stored_arrays(memory_dir)),
        [json.dumps(ZARRAY).encode()],
        ZARRAY,
        seed,
    )


def test_chunk_of_t5x(seed, memory_dir):
    write_zarr(memory_dir / "b")
    compressed = {**ZARRAY, "compressor": {"id": "zlib", "level": 1}}
    (memory_dir / "b" / ".zarray").write_text(json.dumps(compressed))
    tree = {"target": {"b": "PLACEHOLDER://b"}, "state": {"step": np.int32(1)}}
    (memory_dir / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    sample = zlib_chunk()
    (memory_dir / "b" / "0.1").write_bytes(sample)

    def read(content):
        (memory_dir / "b" / "0.0").write_bytes(content)
        read_small(stored_arrays(memory_dir))

    attack("chunk", read, mutations([sample], seed), seed)
    attack_from("chunk", read, st.binary(), seed)


def zlib_chunk():
    import zlib

    return zlib.compress(np.ones((2, 2), "<f4").tobytes())


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_whole_folders(file, seed, memory_dir):
    shutil.copytree(GOLDEN / "t5_1_1", memory_dir / "c")
    path = memory_dir / "c" / file

    def read(content):
        path.write_bytes(content)
        for array in read_huggingface(memory_dir / "c", allow_nonfinite=True).params.values():
            array.load()

    attack(f"whole folder, {file}", read, mutations([path.read_bytes()], seed), seed, count=100)


def test_whole_checkpoints_of_t5x(seed, memory_dir):
    params = {}
    for name, array in load_file(GOLDEN / "t5_1_1" / "model.safetensors").items():
        params[name.replace(".", "/")] = array[:2]
    tree = {"target": {"token_embedder": {"embedding": params["shared/weight"]}}, "state": {}}
    sample = flax.serialization.msgpack_serialize(tree)

    def read(content):
        (memory_dir / "checkpoint").write_bytes(content)
        read_t5x(memory_dir)

    attack("whole T5X", read, mutations([sample], seed), seed, count=200)


def test_limits_are_stated(memory_dir):
    write_zarr(memory_dir / "b")
    (memory_dir / "b" / ".zarray").write_text(json.dumps({**ZARRAY, "chunks": [1 << 40, 1 << 40]}))
    tree = {"target": {"b": "PLACEHOLDER://b"}, "state": {}}
    (memory_dir / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    with pytest.raises(UserError, match="must have chunks of at most 67,108,864 numbers"):
        stored_arrays(memory_dir)

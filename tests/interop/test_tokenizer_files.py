"""Tokenizers of Hugging Face folders as vocabularies, and back."""

import base64
import json
import shutil

import numpy as np
import pytest
import sentencepiece

from t5lite.core.errors import UserError
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import ByteVocabulary, SentencePieceVocabulary
from t5lite.interop.tokenizer_files import read_tokenizer, write_tokenizer
from t5lite.interop.tokenizer_json_reader import GLUED
from t5lite.interop.tokenizer_json_writer import tokenizer_json
from tests.interop.multilingual import lines


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """SentencePiece models of every kind that is exported, on text in many scripts."""
    folder = tmp_path_factory.mktemp("models")
    options = {
        "unigram": {},
        "bytes": {"byte_fallback": True},
        "symbols": {"byte_fallback": True, "user_defined_symbols": ["[NLU]", "x y"]},
        "identity": {"normalization_rule_name": "identity", "byte_fallback": True},
        "bpe": {"model_type": "bpe", "byte_fallback": True},
        "char": {"model_type": "char"},
    }
    for name, others in options.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines(1500, seed=1)),
            model_prefix=str(folder / name),
            vocab_size=2600,
            character_coverage=0.98,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            minloglevel=2,
            **others,
        )
    return folder


def transformers_5_json(vocabulary):
    """tokenizer.json as `T5Tokenizer.save_pretrained` of transformers 5.24 writes it."""
    proto = vocabulary.proto()
    pieces = [[piece.piece, piece.score] for piece in proto.pieces]
    pieces += [[f"<extra_id_{i}>", 0.0] for i in reversed(range(100))]
    special = [0, 1, 2, *range(len(pieces) - 100, len(pieces))]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": pieces[i][0], "special": True, **flags} for i in special
        ],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}
        if charsmap
        else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, {**metaspace, "split": True}],
        },
        "decoder": {**metaspace, "split": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
    }


def folder_of(path, content, **settings):
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(content))
    (path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 100, **settings}))
    return path


def test_rebuilt_model_of_transformers_5_has_equal_ids_on_10_000_lines(models, tmp_path):
    usual = SentencePieceVocabulary(path=str(models / "unigram.model"))
    vocabulary, remarks = read_tokenizer(folder_of(tmp_path / "t", transformers_5_json(usual)))
    assert "spiece.model is rebuilt from tokenizer.json" in remarks
    assert (vocabulary.size, vocabulary.num_sentinels) == (usual.size, 100)
    assert vocabulary.sentinel(3) == usual.sentinel(3)
    for line in lines(10_000, seed=2):
        assert vocabulary.encode(line).tolist() == usual.encode(line).tolist(), line


def test_without_a_character_map_white_space_still_separates_words(models, tmp_path):
    usual = SentencePieceVocabulary(path=str(models / "identity.model"))
    vocabulary, _ = read_tokenizer(folder_of(tmp_path / "t", transformers_5_json(usual)))
    separated = vocabulary.encode("the\nlanguage\u3000the\x85language")
    assert separated.tolist() == vocabulary.encode("the language the language").tolist()


@pytest.mark.parametrize("kind", ["unigram", "bytes", "identity", "symbols", "char"])
def test_export_without_spiece_model_is_rebuilt_with_equal_ids(kind, models, tmp_path):
    special = SpecialTokens(added_tokens={"<sep>": 9000})
    usual = SentencePieceVocabulary(path=str(models / f"{kind}.model"), special=special)
    write_tokenizer(usual, tmp_path)
    (tmp_path / "spiece.model").unlink()
    vocabulary, _ = read_tokenizer(tmp_path)
    assert vocabulary.special == special
    texts = ["the<extra_id_0> language<sep>the <extra_id_99>[NLU] x y z", *lines(300, seed=3)]
    for line in texts:
        ids = usual.encode(line)
        assert vocabulary.encode(line).tolist() == ids.tolist(), line
        assert vocabulary.decode(ids) == usual.decode(ids)


def test_export_of_byte_fallback_decodes_bytes_and_fuses_them(models, tmp_path):
    write_tokenizer(SentencePieceVocabulary(path=str(models / "bytes.model")), tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert content["model"]["byte_fallback"] is True
    kinds = [step["type"] for step in content["decoder"]["decoders"]]
    assert kinds == ["Replace", "ByteFallback", "Fuse", "Strip"]
    # The classes that T5's name in both major versions ignore the file.
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_max_length"] == 512


def test_words_have_no_tokenizer_json(models, tmp_path):
    vocabulary = SentencePieceVocabulary(path=str(models / "unigram.model"))
    proto = vocabulary.proto()
    proto.trainer_spec.model_type = 3
    (tmp_path / "word.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="type 'word' has no counterpart in the tokenizers library"):
        tokenizer_json(SentencePieceVocabulary(path=str(tmp_path / "word.model")))


STRIPPING = {"added_tokens_decoder": {"1100": {"content": "<sep>", "rstrip": True}}}


@pytest.mark.parametrize(
    ("settings", "remark"),
    [
        ({}, "begins a word in the tokenizer"),
        ({"tokenizer_class": "T5Tokenizer", "legacy": True}, "begins a word in the tokenizer"),
        ({"tokenizer_class": "MT5Tokenizer"}, "begins a word in the tokenizer"),
        ({"tokenizer_class": "T5TokenizerFast", "legacy": False}, None),
        ({"legacy": False, **STRIPPING}, "a space after <sep> is dropped by the tokenizer of th"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, None),
    ],
)
def test_text_glued_to_special_tokens_is_mentioned(settings, remark, sentencepiece_model, tmp_path):
    shutil.copyfile(sentencepiece_model, tmp_path / "spiece.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary, remarks = read_tokenizer(tmp_path)
    assert [remark in each for each in remarks] == ([] if remark is None else [True])
    # What the remark says of t5lite.
    glued, spaced = (vocabulary.encode(f"<extra_id_0>{text}") for text in ("the", " the"))
    assert spaced[1:].tolist() == vocabulary.encode("the").tolist() != glued[1:].tolist()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "added_tokens.json",
            {"<sep>": -5},
            "the added token '<sep>' must have an id >= 0, got -5",
        ),
        ("added_tokens.json", {"<sep>": "x"}, "must be texts with their ids"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "must be texts with their ids"),
        ("tokenizer_config.json", {"extra_ids": True}, "extra_ids must be a whole number"),
    ],
)
def test_ids_that_are_none_are_rejected(file, content, message, sentencepiece_model, tmp_path):
    shutil.copyfile(sentencepiece_model, tmp_path / "spiece.model")
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_tokenizer(tmp_path)


def test_sentinels_beyond_those_of_byt5_are_added_tokens(tmp_path):
    listed = {"259": {"content": "<extra_id_0>"}, "400": {"content": "<extra_id_500>"}}
    settings = {"tokenizer_class": "ByT5Tokenizer", "added_tokens_decoder": listed}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary, _ = read_tokenizer(tmp_path)
    assert vocabulary.special.pairs == (("<extra_id_500>", 400),)
    assert vocabulary.encode("<extra_id_500>").tolist() == [400]


@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json"])
def test_added_tokens_are_read_used_and_written(file, sentencepiece_model, tmp_path):
    (tmp_path / "a").mkdir()
    shutil.copyfile(sentencepiece_model, tmp_path / "a" / "spiece.model")
    plain, _ = read_tokenizer(tmp_path / "a")
    number = plain.size
    listed = {"<sep>": number, "<extra_id_0>": plain.sentinel(0), "<pad>": 0}
    token = {"lstrip": False, "rstrip": False, "special": True}
    decoder = {str(i): {**token, "content": text} for text, i in listed.items()}
    content = {"added_tokens_decoder": decoder} if "config" in file else listed
    (tmp_path / "a" / file).write_text(json.dumps(content))
    vocabulary, remarks = read_tokenizer(tmp_path / "a")
    assert remarks == [GLUED]
    expected = [*plain.encode("the language").tolist(), number]
    assert vocabulary.encode("the language <sep>").tolist() == expected
    assert vocabulary.decode(np.array(expected)) == "the language<sep>"
    (tmp_path / "b").mkdir()
    write_tokenizer(vocabulary, tmp_path / "b")
    again, _ = read_tokenizer(tmp_path / "b")
    assert again.fingerprint == vocabulary.fingerprint


def test_byte_tokenizer_carries_added_tokens(tmp_path):
    vocabulary = ByteVocabulary(special=SpecialTokens(added_tokens={"<sep>": 384}))
    write_tokenizer(vocabulary, tmp_path)
    again, remarks = read_tokenizer(tmp_path)
    assert again == vocabulary
    assert remarks == []


def changed(content, **changes):
    return {**content, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: changed(c, model={"type": "BPE"}), "of the tokenizers library: Missing vocab"),
        (lambda c: changed(c, model={"type": "WordLevel"}), "a Unigram model, got WordLevel"),
        (
            lambda c: changed(c, normalizer={"type": "Lowercase"}),
            "normalizer Lowercase has no counterpart in SentencePiece",
        ),
        (
            lambda c: changed(
                c,
                normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b"},
            ),
            "Replace of 'a' by 'b' has no counterpart",
        ),
        (
            lambda c: changed(c, pre_tokenizer={"type": "ByteLevel"}),
            "pre-tokenizer ByteLevel has no counterpart",
        ),
        (lambda c: changed(c, pre_tokenizer=None), "a tokenizer without Metaspace has no counter"),
        (lambda c: changed(c, added_tokens=[{"id": 3}]), "got one that is damaged .*content"),
        (
            lambda c: changed(c, added_tokens=[{"id": 5, "content": "<x>"}]),
            "the added token '<x>' has the id 5, which the model gives to",
        ),
        (
            lambda c: changed(
                c, added_tokens=[{"id": 9999, "content": "<x>", "single_word": True}]
            ),
            "single_word of the added token '<x>' is not supported",
        ),
        (
            lambda c: changed(c, added_tokens=[{"id": 9999, "content": "<extra_id_7>"}]),
            "<extra_id_7> must have the id .*, got 9999",
        ),
    ],
)
def test_step_without_a_counterpart_is_rejected_by_name(change, message, models, tmp_path):
    usual = SentencePieceVocabulary(path=str(models / "unigram.model"))
    content = change(transformers_5_json(usual))
    with pytest.raises(UserError, match=message):
        read_tokenizer(folder_of(tmp_path / "t", content))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"<sep>": 7}, "the added token '<sep>' has the id 7, which is a piece's or a sentinel's"),
        ({"<extra_id_0>": 501}, "<extra_id_0> must have the id .*, got 501"),
        ({"<sep>": "x"}, "added tokens must be texts with their ids"),
    ],
)
def test_added_token_with_an_impossible_id_is_rejected(
    tokens, message, sentencepiece_model, tmp_path
):
    shutil.copyfile(sentencepiece_model, tmp_path / "spiece.model")
    (tmp_path / "added_tokens.json").write_text(json.dumps(tokens))
    with pytest.raises(UserError, match=message):
        read_tokenizer(tmp_path)

"""Vocabularies that the tokenizers package runs."""

import builtins
import json
import pathlib
import pickle
import unicodedata

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.tokenizers_vocabulary import TokenizersVocabulary
from t5lite.data.text.vocabularies import vocabulary_from_description
from t5lite.interop.tokenizer_files import read_tokenizer
from tests.interop.library_tokenizers import KINDS, folder_of
from tests.interop.multilingual import lines

TEXT = "the language of the \U0001f600 12"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: folder_of(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def read(folders):
    return {kind: read_tokenizer(folder)[0] for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", ["gemma", "llama3", "qwen3", "modernbert"])
def test_text_of_any_script_survives_a_round_trip(kind, read):
    vocabulary = read[kind]
    for line in lines(300, seed=4):
        # The normalizer of Qwen and ModernBERT.
        composed = kind in ("qwen3", "modernbert")
        text = unicodedata.normalize("NFC", line) if composed else line
        assert vocabulary.decode(vocabulary.encode(line)) == text


def test_word_piece_decodes_words_in_lower_case(read):
    vocabulary = read["bert"]
    assert vocabulary.decode(vocabulary.encode("The  LANGUAGE")) == "the language"
    assert vocabulary.has_unknown_pieces
    assert vocabulary.encode("\u1234").tolist() == [vocabulary.unknown_id]
    assert vocabulary.decode(vocabulary.encode("\u1234"), unknown="<unk>") == "<unk>"
    assert not read["llama3"].has_unknown_pieces


@pytest.mark.parametrize("kind", KINDS)
def test_random_tokens_of_text_are_never_special(kind, read):
    vocabulary = read[kind]
    ids = np.array(vocabulary.text_ids)
    assert len(ids) > 1000
    assert vocabulary.is_text(ids).all()
    others = [*vocabulary.stop_ids, *vocabulary.first_input_ids]
    others += [vocabulary.sentinel(i) for i in range(vocabulary.num_sentinels)]
    assert not vocabulary.is_text(np.array(others)).any()
    assert not set(others) & set(vocabulary.text_ids)


@pytest.mark.parametrize(
    ("kind", "frame"), [("gemma", (1, 0)), ("llama3", (1, 0)), ("qwen3", (0, 0)), ("bert", (1, 1))]
)
def test_first_and_last_ids_of_inputs_are_those_of_the_file(kind, frame, read):
    vocabulary = read[kind]
    assert (len(vocabulary.first_input_ids), len(vocabulary.last_input_ids)) == frame


def test_unused_tokens_of_the_file_are_sentinels(read):
    vocabulary = read["gemma"]
    assert vocabulary.num_sentinels == 99
    assert vocabulary.texts[vocabulary.sentinel(0)] == "<unused98>"
    ids = vocabulary.encode(f"{TEXT}<extra_id_0> a<extra_id_98>")
    assert ids[-1] == vocabulary.sentinel(98)
    assert vocabulary.decode(ids) == f"{TEXT}<extra_id_0> a<extra_id_98>"
    assert vocabulary.missing_sentinel("<extra_id_99>") == "<extra_id_99>"
    after = vocabulary.encode_after(" a")
    np.testing.assert_array_equal(after, vocabulary.encode("<extra_id_3> a")[1:])
    assert vocabulary.decode_after(after) == " a"


def test_sentinels_follow_the_ids_of_a_file_without_unused_tokens(folders):
    path = str(folders["qwen3"] / "tokenizer.json")
    plain = TokenizersVocabulary(path=path, special=SpecialTokens(eos_ids=(1502,)))
    vocabulary = TokenizersVocabulary(
        path=path, num_sentinels=5, special=SpecialTokens(eos_ids=(1502,))
    )
    assert vocabulary.size == plain.size + 5
    assert vocabulary.sentinel(0) == plain.size + 4
    ids = vocabulary.encode(f"{TEXT}<extra_id_4><extra_id_0> b")
    assert vocabulary.decode(ids) == f"{TEXT}<extra_id_4><extra_id_0> b"
    assert vocabulary.sentinel(4) in ids
    assert "<extra_id_4>" in vocabulary.tokenizer_json()
    assert vocabulary.mask_id == vocabulary.sentinel(0)
    assert plain.mask_id is None
    # An id that a padded model may predict.
    assert vocabulary.decode(np.array([vocabulary.size + 3])) == "<unk>"


def test_literal_text_holds_no_special_tokens(folders, read):
    vocabulary = read["llama3"]
    text = "a<|eot_id|>b"
    parsed = vocabulary.encode(text)
    assert vocabulary.eos_id in parsed
    literal = vocabulary.encode(text.encode())
    assert vocabulary.eos_id not in literal
    assert vocabulary.decode(literal) == text
    own = TokenizersVocabulary(
        path=vocabulary.path, special=vocabulary.special, parse_sentinels=False
    )
    np.testing.assert_array_equal(own.encode(text), literal)
    assert vocabulary.kept_texts.findall(f"x {text} <extra_id_1>") == ["<|eot_id|>", "<extra_id_1>"]


@pytest.mark.parametrize("kind", ["gemma", "llama3", "modernbert"])
def test_words_begin_after_white_space(kind, read):
    vocabulary = read[kind]
    text = "the language\n\nof  the\tlanguage"
    ids = vocabulary.encode(text)
    starts = vocabulary.word_starts(ids)
    ends = [*starts[1:], len(ids)]
    words = [vocabulary.decode(ids[a:b]).strip() for a, b in zip(starts, ends, strict=True)]
    assert words == text.split()


def test_words_of_a_word_piece_model_are_its_pieces_with_their_continuations(read):
    vocabulary = read["bert"]
    with pytest.raises(UserError, match="must have pieces with white space to find words"):
        vocabulary.word_starts(vocabulary.encode(TEXT))
    ids = vocabulary.encode("unlanguagely, the languages!")
    numbers = vocabulary.word_numbers(ids)
    words = [vocabulary.decode(ids[numbers == number]) for number in np.unique(numbers)]
    # The small vocabulary does not know punctuation.
    assert words == ["unlanguagely", "", "the", "languages", ""]
    assert len(ids) > 5


def test_fingerprint_is_that_of_what_changes_ids(folders, tmp_path):
    content = json.loads((folders["bert"] / "tokenizer.json").read_text())
    special = SpecialTokens(eos_ids=(23,))

    def fingerprint(name, **changes):
        (tmp_path / name).write_text(json.dumps({**content, **changes}, indent=2))
        return TokenizersVocabulary(path=str(tmp_path / name), special=special).fingerprint

    usual = fingerprint("a.json")
    assert usual == fingerprint("b.json", post_processor=None, truncation=None)
    assert usual != fingerprint("c.json", normalizer=None)


def test_vocabulary_is_described_and_pickled(read):
    for vocabulary in read.values():
        described = json.loads(json.dumps(vocabulary.describe()))
        again = vocabulary_from_description(described, pathlib.Path())
        assert again == vocabulary
        assert again.fingerprint == vocabulary.fingerprint
        copy = pickle.loads(pickle.dumps(vocabulary))
        np.testing.assert_array_equal(copy.encode(TEXT), vocabulary.encode(TEXT))


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"model": None}, {}, "must be a tokenizer.json of the tokenizers library"),
        ({}, {"first_sentinel": 5, "num_sentinels": 7}, r"first_sentinel must be None or an id in"),
        ({}, {"first_sentinel": True, "num_sentinels": 1}, "first_sentinel must be None or an id"),
        (
            {},
            {"special": SpecialTokens(added_tokens={"<a>": 5})},
            "SpecialTokens.added_tokens must be empty for a TokenizersVocabulary, got '<a>'",
        ),
        ({}, {"special": SpecialTokens(eos_ids=(99999,))}, "ids of SpecialTokens must be under"),
    ],
)
def test_what_it_cannot_represent_is_rejected_by_name(
    change, arguments, message, folders, tmp_path
):
    content = json.loads((folders["bert"] / "tokenizer.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=message):
        TokenizersVocabulary(path=str(tmp_path / "a.json"), **arguments)


def test_pieces_drawn_at_random_are_rejected(folders, tmp_path):
    content = json.loads((folders["llama3"] / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.1
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="model.dropout must be null, got 0.1"):
        TokenizersVocabulary(path=str(tmp_path / "a.json"))


def test_sentinels_that_the_file_numbers_otherwise_are_rejected(folders, tmp_path):
    content = json.loads((folders["qwen3"] / "tokenizer.json").read_text())
    content["added_tokens"][0]["content"] = "<extra_id_0>"
    (tmp_path / "a.json").write_text(json.dumps(content))
    vocabulary = TokenizersVocabulary(path=str(tmp_path / "a.json"), num_sentinels=1)
    with pytest.raises(UserError, match="gives the sentinel <extra_id_0> the id 1500, not 1504"):
        vocabulary.encode("a")


def test_a_missing_package_is_named_with_its_command(folders, monkeypatch):
    imported = builtins.__import__

    def without(name, *others):
        if name == "tokenizers":
            raise ImportError(name)
        return imported(name, *others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs the package tokenizers; pip install 't5lite\[tok"):
        TokenizersVocabulary(path=str(folders["bert"] / "tokenizer.json"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"TokenizersVocabulary.path .*a.json is not a file"):
        TokenizersVocabulary(path=str(tmp_path / "a.json"))

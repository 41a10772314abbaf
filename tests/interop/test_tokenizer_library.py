"""Folders with the tokenizers of T5Gemma, Llama, Qwen, BERT and ModernBERT."""

import json

import pytest

from t5lite.core.errors import UserError
from t5lite.interop.tokenizer_files import read_tokenizer, write_tokenizer
from t5lite.interop.tokenizer_roles import Frame, frame_of, sentinels_of
from tests.interop.library_tokenizers import KINDS, folder_of, gemma_model_folder
from tests.interop.multilingual import lines

BOS = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


@pytest.mark.parametrize("kind", [*KINDS, "gemma_model"])
def test_tokenizer_is_read_again_from_its_export_with_equal_ids(kind, tmp_path):
    given = tmp_path / "given"
    gemma_model_folder(given) if kind == "gemma_model" else folder_of(kind, given)
    vocabulary, _ = read_tokenizer(given)
    (tmp_path / "exported").mkdir()
    write_tokenizer(vocabulary, tmp_path / "exported")
    again, _ = read_tokenizer(tmp_path / "exported")
    assert again.special == vocabulary.special
    assert again.num_sentinels == vocabulary.num_sentinels
    for text in ("<bos>a [MASK] b<|eot_id|>", "a<extra_id_2> b", *lines(200, seed=6)):
        assert again.encode(text).tolist() == vocabulary.encode(text).tolist()


def test_gemma_model_without_tokenizer_json_equals_its_export_as_tokenizer_json(tmp_path):
    vocabulary, remarks = read_tokenizer(gemma_model_folder(tmp_path / "given"))
    assert remarks == ["sentinels 0 to 98 are the tokens <unused98> to <unused0>"]
    assert vocabulary.special.bos_id == 2
    assert vocabulary.mask_id == vocabulary.special.mask_id == 6
    (tmp_path / "exported").mkdir()
    write_tokenizer(vocabulary, tmp_path / "exported")
    (tmp_path / "exported" / "tokenizer.model").unlink()
    other, _ = read_tokenizer(tmp_path / "exported")
    assert type(other).__name__ == "TokenizersVocabulary"
    for text in ("  two  spaces   \n\n\n\t", "<table>a<unused3> <mask>b", *lines(500, seed=7)):
        ids = vocabulary.encode(text)
        assert other.encode(text).tolist() == ids.tolist(), ascii(text)
        assert other.decode(ids) == vocabulary.decode(ids), ascii(text)


def test_long_text_of_gemma_keeps_its_white_space(tmp_path):
    vocabulary, _ = read_tokenizer(gemma_model_folder(tmp_path / "given"))
    text = "the language  of\n\n the  " * 10_000
    assert vocabulary.decode(vocabulary.encode(text)) == text
    unit = vocabulary.encode(text[:240])
    # The pieces are the same on both sides of a cut.
    assert len(vocabulary.encode(text)) == len(unit) * 1000


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer_config.json", {"add_bos_token": False}, "add_bos_token is False, but the post"),
        ("tokenizer_config.json", {"pad_token": "<none>"}, "pad_token '<none>' is no token of the"),
        ("tokenizer_config.json", {"eos_token": None}, "must name an eos_token or a sep_token"),
        ("tokenizer_config.json", {"eos_token": 5}, "eos_token must be a text, got 5"),
        ("added_tokens.json", {"<bos>": 7}, "'<bos>' has the id 7 in other files and 2 in tokeni"),
        ("added_tokens.json", {"<new>": 9999}, "'<new>' has the id 9999 in other files and none"),
    ],
)
def test_files_that_contradict_each_other_are_rejected_by_name(file, change, message, tmp_path):
    folder = folder_of("gemma", tmp_path / "given")
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=message):
        read_tokenizer(folder)


def test_lower_case_that_only_the_settings_ask_for_is_rejected(tmp_path):
    folder = folder_of("bert", tmp_path / "given")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_lower_case": False}))
    with pytest.raises(UserError, match="do_lower_case of tokenizer_config.json must be lowercase"):
        read_tokenizer(folder)


def test_unused_tokens_with_gaps_are_sentinels_only_in_a_row():
    texts = dict(enumerate(["a", "[unused0]", "[unused1]", "b", "[unused2]", "[unused3]"]))
    assert sentinels_of(texts) == (2, 2)
    assert sentinels_of({5: "<unused0>"}) == (None, 0)
    assert sentinels_of({1: "<extra_id_1>", 2: "<extra_id_0>", 3: "<unused0>"}) == (2, 2)
    # Their numbers ascend with the ids.
    assert sentinels_of({1: "<unused1>", 2: "<unused0>"}) == (None, 0)


def test_frame_is_that_of_the_post_processor_or_of_the_settings():
    template = {"type": "TemplateProcessing", "single": [BOS, TEXT, BOS]}
    sequence = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    assert frame_of({"post_processor": sequence}, {}, "it") == Frame(("<bos>",), ("<bos>",))
    bert = {"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 0]}
    assert frame_of({"post_processor": bert}, {}, "it") == Frame(("[CLS]",), ("[SEP]",))
    settings = {"add_eos_token": True, "eos_token": {"content": "</s>"}}
    assert frame_of({}, settings, "it") == Frame((), ("</s>",))
    assert frame_of({}, {}, "it") == Frame()
    with pytest.raises(UserError, match="it: the post-processor X is not supported"):
        frame_of({"post_processor": {"type": "X"}}, {}, "it")
    with pytest.raises(UserError, match="it: the post-processor of tokenizer.json is damaged"):
        frame_of({"post_processor": {"type": "TemplateProcessing", "single": [5]}}, {}, "it")

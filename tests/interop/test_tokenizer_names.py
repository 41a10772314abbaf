"""The names of special tokens in tokenizer_config.json, by which other programs find them."""

import json

import pytest

from t5lite.data.text.vocabularies import ByteVocabulary, SentencePieceVocabulary
from t5lite.interop.tokenizer_files import read_tokenizer, write_tokenizer


def names_of(vocabulary, folder, **choices):
    write_tokenizer(vocabulary, folder, **choices)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    return {name: settings.get(name) for name in ("mask_token", "bos_token")}


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_mask_is_named_for_a_model_that_fills_it(kind, sentencepiece_model, tmp_path):
    vocabulary = ByteVocabulary()
    if kind == "pieces":
        vocabulary = SentencePieceVocabulary(path=str(sentencepiece_model))
    assert names_of(vocabulary, tmp_path)["mask_token"] is None
    assert names_of(vocabulary, tmp_path, fills_masks=True)["mask_token"] == "<extra_id_0>"


def test_first_token_of_targets_is_named_and_begins_no_inputs(sentencepiece_model, tmp_path):
    vocabulary = SentencePieceVocabulary(path=str(sentencepiece_model))
    assert names_of(vocabulary, tmp_path)["bos_token"] is None
    unknown = vocabulary.proto().pieces[2].piece
    assert names_of(vocabulary, tmp_path, bos_token=2)["bos_token"] == unknown
    again, _ = read_tokenizer(tmp_path, vocabulary.special, has_encoder=True)
    assert again.first_input_ids == ()

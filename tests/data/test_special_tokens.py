"""Special ids other than T5's, and tokens added to a vocabulary."""

import pathlib

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    vocabulary_from_description,
)


def with_tokens(tokens, **others):
    return ByteVocabulary(special=SpecialTokens(added_tokens=tokens, **others))


def test_added_token_is_one_id_in_both_directions():
    vocabulary = with_tokens({"<sep>": 384})
    ids = vocabulary.encode("a<sep>b")
    assert ids.tolist() == [100, 384, 101]
    assert vocabulary.decode(ids) == "a<sep>b"
    assert vocabulary.size == 385
    assert vocabulary.sentinel(0) == 383
    assert not vocabulary.is_text(ids)[1]


def test_text_after_an_added_token_begins_a_word_only_after_a_space(sentencepiece_model):
    special = SpecialTokens(added_tokens={"<sep>": 9000})
    vocabulary = SentencePieceVocabulary(path=sentencepiece_model, special=special)
    plain = SentencePieceVocabulary(path=sentencepiece_model)
    spaced = vocabulary.encode("the <sep> language")
    assert spaced.tolist() == [*plain.encode("the"), 9000, *plain.encode("language")]
    assert vocabulary.decode(spaced) == "the<sep> language"
    glued = vocabulary.encode("the<sep>language")
    assert vocabulary.decode(glued) == "the<sep>language"
    assert glued.tolist() != spaced.tolist()


def test_targets_end_at_any_of_the_ends_of_a_sequence():
    vocabulary = with_tokens((), eos_ids=[100, 1])
    assert vocabulary.eos_id == 100
    assert vocabulary.stop_ids == (100, 1)
    assert vocabulary.decode(np.array([101, 100, 102])) == "b"
    assert vocabulary.decode(np.array([101, 1, 102])) == "b"
    assert vocabulary.is_text(np.array([99, 100, 101])).tolist() == [True, False, True]


def test_padding_and_a_forced_first_token_have_no_text():
    vocabulary = with_tokens((), pad_id=101, forced_bos_id=102)
    assert vocabulary.first_ids == (102,)
    assert vocabulary.decode(np.array([102, 100, 101])) == "a"


def test_special_tokens_are_part_of_the_fingerprint_and_the_description():
    usual, special = ByteVocabulary(), with_tokens({"<sep>": 384}, eos_ids=(2,))
    assert usual.fingerprint == "ByteVocabulary(num_sentinels=125)"
    assert usual.fingerprint != special.fingerprint
    assert usual.describe() == {"kind": "ByteVocabulary", "num_sentinels": 125}
    assert vocabulary_from_description(special.describe(), pathlib.Path()) == special


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pad_id": -1}, "SpecialTokens.pad_id must be a token id, got -1"),
        ({"eos_ids": ()}, r"SpecialTokens.eos_ids must be a list of at least one .*, got \(\)"),
        ({"eos_ids": (1, "2")}, "SpecialTokens.eos_ids must be a list of at least one token id"),
        ({"forced_bos_id": True}, "SpecialTokens.forced_bos_id must be a token id or None"),
        ({"added_tokens": {"": 5}}, "SpecialTokens.added_tokens must be texts with their token id"),
        ({"added_tokens": [("a", 5), ("b", 5)]}, "each id once.*; 5 is repeated"),
    ],
)
def test_special_tokens_that_are_none_are_rejected(arguments, message):
    with pytest.raises(UserError, match=message):
        SpecialTokens(**arguments)

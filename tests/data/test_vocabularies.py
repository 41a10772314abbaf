import numpy as np
import pytest
import sentencepiece

from t5lite.core.errors import UserError
from t5lite.data.text.vocabularies import (
    PIECE_CHARACTERS,
    ByteVocabulary,
    SentencePieceVocabulary,
    check_same,
    from_description,
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, text_file):
    """A SentencePiece model with T5's special ids, trained here."""
    prefix = tmp_path_factory.mktemp("spiece") / "small"
    _train(text_file, prefix, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return f"{prefix}.model"


def _train(text, prefix, **ids):
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(prefix),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )


def test_bytes_come_back_whatever_they_are():
    vocabulary = ByteVocabulary()
    text = "naïve ⏎ 日本"
    assert vocabulary.decode(vocabulary.encode(text)) == text
    every = bytes(range(256))
    np.testing.assert_array_equal(vocabulary.encode(every), np.arange(256) + 3)


def test_sentinels_are_the_highest_ids_downwards():
    vocabulary = ByteVocabulary(num_sentinels=100)
    assert [vocabulary.sentinel(i) for i in (0, 1, 99)] == [358, 357, 259]


def test_decoding_stops_at_the_end_and_names_sentinels():
    vocabulary = ByteVocabulary()
    ids = np.array([383, *vocabulary.encode("ab"), 382, 1, *vocabulary.encode("c")])
    assert vocabulary.decode(ids) == "<extra_id_0>ab<extra_id_1>"


def test_sentencepiece_has_sentinels_after_its_pieces(model_path):
    vocabulary = SentencePieceVocabulary(path=model_path, num_sentinels=10)
    pieces = sentencepiece.SentencePieceProcessor(model_file=model_path).vocab_size()
    assert vocabulary.size == pieces + 10
    assert vocabulary.sentinel(0) == pieces + 9
    text = "the quick brown fox"
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert vocabulary.decode(np.append(ids, pieces + 9)) == f"{text}<extra_id_0>"


def test_text_behind_a_sentinel_goes_on_where_it_does(sentencepiece_vocabulary):
    vocabulary = sentencepiece_vocabulary
    text = "An expression with a value, and un"
    ids = vocabulary.encode(text)
    starts = set(vocabulary.word_starts(ids).tolist())
    # Some are within a word.
    assert len(starts) < len(ids)
    for at in range(1, len(ids)):
        cut = np.concatenate([ids[:at], [vocabulary.sentinel(0)], ids[at:]])
        told = vocabulary.decode(cut)
        before, behind = told.split("<extra_id_0>")
        assert before + behind == text
        assert behind.startswith(" ") == (at in starts)
        # Not always the same pieces: the best for the whole are not the best for its parts.
        again = vocabulary.encode_behind(behind)
        assert vocabulary.decode_behind(again) == behind
    assert vocabulary.encode_behind("").size == 0


@pytest.mark.parametrize("between", [" ", "\n", ""])
def test_long_texts_are_encoded_in_pieces_that_nobody_sees(between, sentencepiece_vocabulary):
    vocabulary, count = sentencepiece_vocabulary, PIECE_CHARACTERS // 2
    ids = vocabulary.encode(f"value{between}" * count)
    assert len(ids) * 100 > PIECE_CHARACTERS
    # As SentencePiece tells white space.
    assert vocabulary.decode(ids) == f"value{between and ' '}" * (count - 1) + "value"
    if between:
        behind = vocabulary.encode_behind("," + between + f"value{between}" * count)
        np.testing.assert_array_equal(behind[-len(ids) :], ids)


def test_sentencepiece_with_other_special_ids_is_refused(tmp_path, text_file):
    _train(text_file, tmp_path / "other", pad_id=3, eos_id=2, unk_id=0, bos_id=1)
    with pytest.raises(UserError, match=r"must have pad, eos and unk ids \(0, 1, 2\)"):
        SentencePieceVocabulary(path=f"{tmp_path}/other.model")


def test_a_vocabulary_that_is_not_there_or_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        SentencePieceVocabulary(path=str(tmp_path / "none.model"))
    (tmp_path / "rubbish.model").write_bytes(b"rubbish" * 100)
    with pytest.raises(UserError, match="must be a SentencePiece model"):
        SentencePieceVocabulary(path=str(tmp_path / "rubbish.model"))


def test_a_checkpoint_is_used_with_its_own_vocabulary_alone(tmp_path):
    own = ByteVocabulary(num_sentinels=10)
    assert from_description(own.describe(), tmp_path) == own
    check_same(own.fingerprint, ByteVocabulary(num_sentinels=10), "it")
    # Of an older version, which did not say.
    check_same(None, own, "it")
    with pytest.raises(UserError, match=r"with the vocabulary .*=10\), got .*=125\)"):
        check_same(own.fingerprint, ByteVocabulary(), "it")
    with pytest.raises(UserError, match="does not say what its vocabulary is; convert it with"):
        from_description(None, tmp_path)

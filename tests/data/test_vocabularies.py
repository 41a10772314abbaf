import re

import numpy as np
import pytest
import sentencepiece

from t5lite.core.errors import Unavailable, UserError
from t5lite.data.sources.file_source import FileSource
from t5lite.data.text import vocabulary_training
from t5lite.data.text.vocabularies import (
    CHUNK_CHARACTERS,
    ByteVocabulary,
    SentencePieceVocabulary,
    check_same_vocabulary,
    vocabulary_from_description,
)
from t5lite.data.text.vocabulary_training import VocabularyTraining, train_vocabulary


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, text_file):
    """A SentencePiece model with T5's special ids."""
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


def test_all_bytes_survive_a_round_trip():
    vocabulary = ByteVocabulary()
    text = "naïve ⏎ 日本"
    assert vocabulary.decode(vocabulary.encode(text)) == text
    every = bytes(range(256))
    np.testing.assert_array_equal(vocabulary.encode(every), np.arange(256) + 3)


def test_sentinels_count_down_from_the_highest_id():
    vocabulary = ByteVocabulary(num_sentinels=100)
    assert [vocabulary.sentinel(i) for i in (0, 1, 99)] == [358, 357, 259]


def test_decoding_stops_at_the_end_of_sequence_and_names_sentinels():
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


def test_text_after_a_sentinel_keeps_its_leading_space(sentencepiece_vocabulary):
    vocabulary = sentencepiece_vocabulary
    text = "An expression with a value, and un"
    ids = vocabulary.encode(text)
    starts = set(vocabulary.word_starts(ids).tolist())
    # Some tokens continue a word.
    assert len(starts) < len(ids)
    for at in range(1, len(ids)):
        cut = np.concatenate([ids[:at], [vocabulary.sentinel(0)], ids[at:]])
        before, after = vocabulary.decode(cut).split("<extra_id_0>")
        assert before + after == text
        assert after.startswith(" ") == (at in starts)
        # Not always the same pieces: the best segmentation of a text is not that of its parts.
        again = vocabulary.encode_after(after)
        assert vocabulary.decode_after(again) == after
    assert vocabulary.encode_after("").size == 0


@pytest.mark.parametrize("between", [" ", "\n", ""])
def test_chunks_of_long_texts_do_not_change_the_ids(between, sentencepiece_vocabulary):
    vocabulary, count = sentencepiece_vocabulary, CHUNK_CHARACTERS // 2
    ids = vocabulary.encode(f"value{between}" * count)
    assert len(ids) * 100 > CHUNK_CHARACTERS
    # SentencePiece normalises white space.
    assert vocabulary.decode(ids) == f"value{between and ' '}" * (count - 1) + "value"
    if between:
        after = vocabulary.encode_after("," + between + f"value{between}" * count)
        np.testing.assert_array_equal(after[-len(ids) :], ids)


def test_sentencepiece_models_with_other_special_ids_are_rejected(tmp_path, text_file):
    _train(text_file, tmp_path / "other", pad_id=3, eos_id=2, unk_id=0, bos_id=1)
    with pytest.raises(UserError, match=r"must have pad, eos and unk ids \(0, 1, 2\)"):
        SentencePieceVocabulary(path=f"{tmp_path}/other.model")


def test_a_missing_file_and_a_file_that_is_no_model_are_rejected(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        SentencePieceVocabulary(path=str(tmp_path / "none.model"))
    with pytest.raises(UserError, match="'~nosuchuser/a.model' is not a file"):
        SentencePieceVocabulary(path="~nosuchuser/a.model")
    (tmp_path / "rubbish.model").write_bytes(b"rubbish" * 100)
    with pytest.raises(UserError, match="must be a SentencePiece model"):
        SentencePieceVocabulary(path=str(tmp_path / "rubbish.model"))


def test_a_checkpoint_accepts_only_its_own_vocabulary(tmp_path):
    own = ByteVocabulary(num_sentinels=10)
    assert vocabulary_from_description(own.describe(), tmp_path) == own
    check_same_vocabulary(own.fingerprint, ByteVocabulary(num_sentinels=10), "it")
    # A checkpoint of an older version names none.
    check_same_vocabulary(None, own, "it")
    with pytest.raises(UserError, match=r"with the vocabulary .*=10\), got .*=125\)"):
        check_same_vocabulary(own.fingerprint, ByteVocabulary(), "it")
    with pytest.raises(UserError, match="does not name its vocabulary; convert it with"):
        vocabulary_from_description(None, tmp_path)


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ([""], "vocab.user_symbols must be texts that are not empty, got ''"),
        (["a", " "], "vocab.user_symbols must be texts that are not empty, got ' '"),
        ([5], "vocab.user_symbols must be texts that are not empty, got 5"),
        (["a", "b", "a"], "vocab.user_symbols must be different, but 'a' is repeated"),
        (["<unk>"], "vocab.user_symbols must not hold '<unk>'"),
        (["<0x41>"], "vocab.user_symbols must not hold '<0x41>', a piece of vocab.byte_fallback"),
        ("[NLU]", r"vocab.user_symbols must be a list, as in \['\[NLU\]'\], got '\[NLU\]'"),
    ],
)
def test_wrong_symbols_of_a_new_vocabulary_are_named(symbols, message, text_file):
    source = FileSource(files={"train": str(text_file)})
    with pytest.raises(UserError, match=message):
        VocabularyTraining(source=source, output="a.model", user_symbols=symbols)


def test_a_size_that_a_text_does_not_yield_is_explained(text_file, data_dir, tmp_path):
    source = FileSource(files={"train": str(text_file)}, data_dir=data_dir)
    training = VocabularyTraining(source=source, output=f"{tmp_path}/a.model", size=9000)
    with pytest.raises(
        UserError, match=r"9000 is impossible .*: it has \d+ pieces at most; lower vo"
    ):
        train_vocabulary(training, on_line=lambda: None)
    training = VocabularyTraining(source=source, output=f"{tmp_path}/a.model", size=5)
    with pytest.raises(
        UserError, match=r"its characters need \d+ pieces at least; raise vocab.size"
    ):
        train_vocabulary(training, on_line=lambda: None)


def test_a_vocabulary_that_another_process_trains_is_not_overwritten(text_file, data_dir, tmp_path):
    source = FileSource(files={"train": str(text_file)}, data_dir=data_dir)
    training = VocabularyTraining(source=source, output=f"{tmp_path}/a.model", size=290)
    errors = []

    def train_again():
        if not errors:
            with pytest.raises(Unavailable) as error:
                train_vocabulary(training, on_line=lambda: None)
            errors.append(str(error.value))

    assert train_vocabulary(training, on_line=train_again) == 290
    assert re.fullmatch(
        r"vocab.output .*/a.model is being trained by process .*; wait for it", *errors
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.model"]
    with pytest.raises(UserError, match="a.model exists; choose another file name"):
        train_vocabulary(training, on_line=lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.model"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("x.cc(1) [a] --user_defined_symbols must be", "vocab.user_symbols must be"),
        ("Internal: model_type is not set", "Internal: vocab.model_type is not set"),
        ("", "SentencePiece failed"),
    ],
)
def test_flags_of_sentencepiece_have_our_names_in_errors(theirs, ours):
    assert vocabulary_training._in_own_names(theirs) == ours

"""Exported tokenizers in transformers, and those that it saves; needs transformers, not torch."""

import unicodedata

import numpy as np
import pytest

from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import ByteVocabulary, SentencePieceVocabulary
from t5lite.interop.tokenizer_files import read_tokenizer, write_tokenizer
from tests.conftest import SEED
from tests.interop.multilingual import lines
from tests.interop.test_tokenizer_files import models  # noqa: F401

transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

IS_5 = int(transformers.__version__.partition(".")[0]) >= 5
TEXTS = (
    "UPPER \U0001f600",
    "",
    "  ",
    "<extra_id_0>glued<extra_id_1> spaced <extra_id_99>",
    "the<sep>cat <sep> sat",
    "[NLU] x y z[NLU]",
)


@pytest.mark.parametrize("kind", ["unigram", "bytes", "symbols", "identity", "bpe", "char"])
def test_exported_tokenizer_has_equal_ids_and_texts(kind, models, tmp_path):  # noqa: F811
    print(f"T5LITE_TEST_SEED={SEED} repeats this test")
    special = SpecialTokens(added_tokens={"<sep>": 9000})
    vocabulary = SentencePieceVocabulary(path=str(models / f"{kind}.model"), special=special)
    write_tokenizer(vocabulary, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, *lines(2000, SEED)):
        ids = vocabulary.encode(text).tolist()
        assert theirs(text).input_ids == [*ids, 1], ascii(text)
        if 2 not in ids:
            assert theirs.decode(ids) == vocabulary.decode(np.array(ids, np.int32)), ascii(text)
    assert theirs.model_max_length == 512
    theirs.save_pretrained(tmp_path / "saved")
    if kind != "bpe":
        again, _ = read_tokenizer(tmp_path / "saved")
        for text in (*TEXTS, *lines(200, SEED)):
            assert again.encode(text).tolist() == vocabulary.encode(text).tolist(), ascii(text)


def test_exported_byte_tokenizer_has_equal_ids_and_texts(tmp_path):
    print(f"T5LITE_TEST_SEED={SEED} repeats this test")
    vocabulary = ByteVocabulary(special=SpecialTokens(added_tokens={"<sep>": 384}))
    write_tokenizer(vocabulary, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, *lines(1000, SEED)):
        ids = vocabulary.encode(text).tolist()
        assert theirs(text).input_ids == [*ids, 1], ascii(text)
        # transformers 4 puts spaces around special tokens otherwise.
        decoded = theirs.decode(ids, spaces_between_special_tokens=False)
        assert decoded == vocabulary.decode(np.array(ids, np.int32)), ascii(text)


@pytest.mark.skipif(not IS_5, reason="transformers 4 saves spiece.model")
@pytest.mark.parametrize("kind", ["unigram", "identity"])
def test_tokenizer_that_transformers_5_saves_has_equal_ids(kind, models, tmp_path):  # noqa: F811
    print(f"T5LITE_TEST_SEED={SEED} repeats this test")
    theirs = transformers.T5Tokenizer.from_pretrained(
        _folder_of(tmp_path / "given", models / f"{kind}.model")
    )
    theirs.add_tokens(["<sep>"])
    theirs.save_pretrained(tmp_path / "saved")
    vocabulary, _ = read_tokenizer(tmp_path / "saved")
    # Its normalizer loses combining marks and joiners after some characters.
    texts = [
        text
        for text in lines(14_000, SEED)
        if not any(unicodedata.category(c) in ("Mn", "Mc", "Me") or c == "\u200d" for c in text)
    ]
    assert len(texts) > 5_000
    for text in ("the cat <sep>", *texts):
        ids = vocabulary.encode(text).tolist()
        assert theirs(text).input_ids == [*ids, 1], ascii(text)


def _folder_of(folder, model):
    folder.mkdir()
    (folder / "spiece.model").write_bytes(model.read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    return folder

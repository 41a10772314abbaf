"""The version of token caches is raised whenever the same records give other tokens."""

import hashlib
import json

import pytest

from t5lite.data.sources.file_source import FileSource
from t5lite.data.task import Task
from t5lite.data.text.preprocessors import PREPROCESSORS
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import ByteVocabulary, SentencePieceVocabulary
from t5lite.data.tokens import ENCODING_VERSION
from t5lite.objectives.supervised import Supervised
from tests.small_tokenizer import small_model

RECORDS = [
    {"a": "The <b>cat</b> sat", "b": ["x", "y"]},
    {"a": "  two  spaces <extra_id_0>glued <extra_id_1> apart <extra_id_00>", "b": []},
    {"a": "\uff21 gr\u00f6\u00dfer \U0001f600\u2028 <sep>x", "b": {"en": "\u00fc", "n": 1.5}},
    {"a": '["1", "2"] & a < b', "b": "text"},
    {"a": "", "b": "no a"},
]
TEMPLATES = ("{a}", "{{{b}}} {a} {b}")
# Of those that take any record; that of `mark_answer` is one of SQuAD.
STEPS = [name for name in PREPROCESSORS if name != "mark_answer"]
# The digest of all tokens below for each version.
DIGESTS = {1: "72370b4ba774467d"}


def tokens_of(folder):
    special = SpecialTokens(added_tokens={"<sep>": 400}, eos_ids=(1, 7))
    (folder / "small.model").write_bytes(small_model())
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    for vocabulary in (
        ByteVocabulary(),
        ByteVocabulary(special=special, parse_sentinels=False),
        SentencePieceVocabulary(path=str(folder / "small.model"), special=special),
    ):
        for steps in ((), *((name,) for name in sorted(STEPS)), tuple(STEPS)):
            task = Task(
                source=FileSource(files={"train": str(folder / "a.jsonl")}, fields=("a", "b")),
                vocabulary=vocabulary,
                objective=Supervised(inputs_length=64, targets_length=64),
                inputs=TEMPLATES[0],
                targets=TEMPLATES[1],
                preprocessors=steps,
            )
            records = task.tokens("train")
            yield steps, [[ids.tolist() for ids in records[i]] for i in range(len(records))]


def test_version_is_raised_when_tokens_change(tmp_path):
    digest = hashlib.sha256(json.dumps(list(tokens_of(tmp_path))).encode()).hexdigest()[:16]
    if DIGESTS.get(ENCODING_VERSION) != digest:
        pytest.fail(
            "the same records give other tokens than before: raise ENCODING_VERSION in "
            "t5lite/data/tokens.py, or the version of the preprocessor that changed, and add "
            f"{ENCODING_VERSION + 1}: {digest!r} to DIGESTS"
        )

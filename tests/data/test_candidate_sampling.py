import json

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.text.candidate_sampling import SampleCandidates
from t5lite.data.text.fields import JsonText
from t5lite.data.text.vocabularies import ByteVocabulary


def record(relevance, documents, **others):
    lists = {"relevance": relevance, "documents": documents, **others}
    return {"query": "q", **{name: JsonText(json.dumps(x)) for name, x in lists.items()}}


def test_one_relevant_candidate_is_kept_with_others_in_order(rng):
    sample = SampleCandidates(count=3)
    given = record([0, 2, 0, 1, 0, 0], list("abcdef"))
    seen = set()
    for _ in range(60):
        made = sample.augment(given, rng, ByteVocabulary())
        documents = made["documents"].value
        assert made["query"] == "q"
        assert documents == sorted(documents)
        assert len(documents) == 3
        assert made["relevance"].value == [{"b": 2, "d": 1}.get(each, 0) for each in documents]
        assert {"b", "d"} & set(documents)
        seen |= set(documents)
    assert seen == set("abcdef")
    assert sample.augment(record([1, 0], ["a", "b"]), rng, ByteVocabulary())["documents"].value
    made = sample.augment(record([0] * 5, list("abcde")), rng, ByteVocabulary())
    assert len(made["relevance"].value) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (record([1, 0], ["a"]), "must have equal lengths, got 2 of 'relevance', 1 of 'documents'"),
        (record([1, 0], "a"), "SampleCandidates.fields: 'documents' must be a list, got"),
        ({"documents": JsonText("[]")}, "SampleCandidates.relevance names the field 'relevance'"),
    ],
)
def test_lists_that_do_not_match_are_rejected(given, message):
    with pytest.raises(UserError, match=message):
        SampleCandidates(count=1).augment(given, np.random.default_rng(0), ByteVocabulary())


def test_a_count_is_needed():
    with pytest.raises(UserError, match="SampleCandidates.count must be a whole number >= 1"):
        SampleCandidates(count=0)

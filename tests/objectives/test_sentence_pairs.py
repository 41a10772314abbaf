import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.objectives.sentence_pairs import NEXT_PART, OTHER_PART, SentencePairs


@pytest.mark.parametrize("first", [(), (2,)])
def test_the_second_part_follows_the_first_in_half_of_the_examples(first, seed):
    special = SpecialTokens(bos_id=first[0]) if first else SpecialTokens()
    vocabulary, rng = ByteVocabulary(special=special), np.random.default_rng(seed)
    objective = SentencePairs(inputs_length=23)
    objective.check(vocabulary)
    denoiser = objective.choose(rng, vocabulary)
    whole = 2 * (23 - len(first) - 2)
    assert denoiser.tokens_length == whole
    labels = []
    for length in [*range(1, whole), *[whole] * 400]:
        tokens = np.arange(10, 10 + length, dtype=np.int32)
        example = denoiser(tokens, rng, vocabulary)
        ids, weights = example["targets"], example["target_weights"]
        at = int(np.flatnonzero(ids == vocabulary.sentinel(1))[0])
        one, two = ids[len(first) : at], ids[at + 1 : -1]
        label = example["pair_labels"][0]
        start = len(one) + (max(1, length // 2) if label == OTHER_PART else 0)
        assert one.tolist() == tokens[: len(one)].tolist()
        assert two.tolist() == tokens[start : start + len(two)].tolist()
        assert (len(two) > 0) == (label > 0) == (length > 3)
        assert ids[: len(first)].tolist() == list(first)
        assert example["token_types"].tolist() == [0] * (at + 1) + [1] * (len(ids) - at - 1)
        # Only text is masked, and what is not masked is as it was.
        assert weights.sum() >= 1
        assert not weights[[at, -1, *range(len(first))]].any()
        np.testing.assert_array_equal(example["inputs"][weights == 0], ids[weights == 0])
        labels.append(label)
    # Five standard deviations of 400 draws.
    assert abs(labels[-400:].count(NEXT_PART) - 200) < 50


@pytest.mark.parametrize("separator", ["[SEP]", "<extra_id_0>"])
def test_a_separator_that_is_no_token_or_the_mask_is_rejected(separator):
    with pytest.raises(UserError, match="SentencePairs.separator must be one token"):
        SentencePairs(inputs_length=9, separator=separator).check(ByteVocabulary())

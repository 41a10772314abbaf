"""The first and last ids of inputs, by the vocabulary, in every objective."""

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.objectives.classes import Classification, Tagging
from t5lite.objectives.masked_lm import MaskedLM
from t5lite.objectives.prefix_lm import PrefixLM
from t5lite.objectives.span_corruption import SpanCorruption
from t5lite.objectives.supervised import Supervised
from t5lite.objectives.ul2 import UL2

PLAIN = ByteVocabulary()
BOS = ByteVocabulary(special=SpecialTokens(bos_id=2))
MASKED = ByteVocabulary(
    num_sentinels=0, special=SpecialTokens(bos_id=2, mask_id=258, eos_ids=(1,), end_inputs=True)
)
OPEN = ByteVocabulary(special=SpecialTokens(bos_id=2, end_inputs=False))


def example_of(objective, vocabulary, seed=0):
    objective.check(vocabulary)
    rng = np.random.default_rng(seed)
    denoiser = objective.choose(rng, vocabulary)
    tokens = np.arange(10, 10 + denoiser.tokens_length, dtype=np.int32) % 250
    return denoiser(tokens, rng, vocabulary), tokens


@pytest.mark.parametrize(
    "objective",
    [
        PrefixLM(inputs_length=24, targets_length=24, suffix_fraction=0.5),
        SpanCorruption(inputs_length=24),
        UL2(inputs_length=96, targets_length=96),
        MaskedLM(inputs_length=24),
    ],
)
def test_inputs_of_text_objectives_begin_with_the_first_id_and_are_no_longer(objective):
    example, _ = example_of(objective, BOS)
    assert example["inputs"][0] == 2
    assert 2 not in example["inputs"][1:]
    assert len(example["inputs"]) <= objective.inputs_length
    plain, _ = example_of(objective, PLAIN)
    assert plain["inputs"][0] != 2
    opened, _ = example_of(objective, OPEN)
    assert opened["inputs"][-1] != 1


def test_mask_of_the_vocabulary_hides_tokens_and_the_first_id_is_no_target():
    example, tokens = example_of(MaskedLM(inputs_length=200, noise_density=0.5), MASKED)
    assert (example["inputs"] == 258).sum() > 50
    assert example["inputs"].shape == example["targets"].shape == (200,)
    np.testing.assert_array_equal(example["targets"], [2, *tokens, 1])
    assert example["target_weights"][0] == example["target_weights"][-1] == 0
    assert example["target_weights"].sum() == 99


def test_masked_lm_without_a_mask_is_rejected():
    with pytest.raises(UserError, match="or with SpecialTokens.mask_id, got neither"):
        MaskedLM(inputs_length=8).check(ByteVocabulary(num_sentinels=0))


def test_pairs_are_framed_and_cut_to_their_lengths():
    inputs = BOS.encode("abcdef")
    supervised = Supervised(inputs_length=5, targets_length=3)
    example = supervised.from_pair(inputs, BOS.encode("xyz"), BOS)
    assert BOS.decode(example["inputs"][1:]) == "abc"
    assert example["inputs"].tolist() == [2, *BOS.encode("abc"), 1]
    assert example["targets"].tolist() == [*BOS.encode("xy"), 1]
    assert supervised.from_pair(inputs, inputs, OPEN)["inputs"].tolist() == [2, *inputs[:4]]
    classes = Classification(inputs_length=5, classes=["no", "yes"])
    example = classes.from_pair(inputs, BOS.encode("yes"), BOS)
    assert example["inputs"][0] == 2
    assert example["targets"].tolist() == [1, 0, 0, 0, 0]


def test_tags_stand_at_the_first_tokens_of_words_after_the_first_id():
    tagging = Tagging(inputs_length=7, classes=["O", "B"])
    example = tagging.from_pair(BOS.encode("ab cd e"), BOS.encode("O B B"), BOS)
    # bos, a, b, space, c, d, eos: the last word is cut.
    assert example["target_weights"].tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert example["targets"].tolist() == [0, 0, 0, 0, 1, 0, 0]


def test_inputs_too_short_for_a_first_id_are_rejected_before_any_example():
    with pytest.raises(UserError, match="SpanCorruption.inputs_length must be at least 4"):
        SpanCorruption(inputs_length=4).check(BOS)

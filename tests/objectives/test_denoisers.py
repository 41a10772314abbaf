"""Invariants of every objective, for any tokens and any seed."""

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.objectives.causal import Causal
from t5lite.objectives.masked_lm import MaskedLM
from t5lite.objectives.prefix_lm import PrefixLM
from t5lite.objectives.span_corruption import SpanCorruption, fill_spans
from t5lite.objectives.supervised import Supervised
from t5lite.objectives.ul2 import DENOISERS, UL2

VOCABULARY = ByteVocabulary(num_sentinels=200)
EOS = VOCABULARY.eos_id

OBJECTIVES = [
    SpanCorruption(inputs_length=64),
    SpanCorruption(inputs_length=64, noise_density=0.5, mean_noise_span_length=3.0),
    SpanCorruption(inputs_length=64, noise_density=0.15, mean_noise_span_length=64.0),
    UL2(inputs_length=96, targets_length=96),
    PrefixLM(inputs_length=50, targets_length=40),
    PrefixLM(inputs_length=50, targets_length=40, suffix_fraction=0.25),
    PrefixLM(inputs_length=10, targets_length=40, suffix_fraction=0.25),
    MaskedLM(inputs_length=50),
    MaskedLM(inputs_length=50, whole_words=True),
    Causal(targets_length=32),
]


def merged(example, prefix=()):
    """Returns the tokens that an example was made from."""
    inputs, targets = example["inputs"], example["targets"]
    if prefix and inputs[: len(prefix)].tolist() == list(prefix):
        inputs = inputs[len(prefix) :]
    if "decoder_inputs" in example:
        return np.append(example["decoder_inputs"], targets[-1:])
    if "target_weights" in example:
        hidden = example["target_weights"] > 0
        assert inputs[-1] == targets[-1] == EOS
        return np.where(hidden, targets, inputs)[:-1]
    if inputs.size and inputs[-1] == EOS:
        return np.concatenate([part for _, part in fill_spans(inputs, targets, VOCABULARY)])
    assert targets[-1] == EOS
    return np.concatenate([inputs, targets[:-1]])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_inputs_and_targets_merge_back_to_the_text_and_fit(objective, seed):
    rng = np.random.default_rng(seed)
    objective.check(VOCABULARY)
    for _ in range(300):
        denoiser = objective.choose(rng, VOCABULARY)
        whole = denoiser.tokens_length
        for length in (whole, int(rng.integers(1 + denoiser.lookahead, whole + 1))):
            tokens = rng.integers(3, 259, length).astype(np.int32)
            example = denoiser(tokens, rng, VOCABULARY)
            prefix = getattr(denoiser, "prefix", np.zeros(0, int)).tolist()
            np.testing.assert_array_equal(merged(example, prefix), tokens, err_msg=f"seed {seed}")
            assert len(example["inputs"]) <= objective.inputs_length
            assert len(example["targets"]) <= objective.targets_length
            total = len(example["inputs"]) + len(example["targets"])
            assert "target_weights" in example or total <= objective.total_length
            assert all(part.dtype == np.int32 for part in example.values())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_the_same_seed_makes_the_same_example(objective):
    def make():
        rng = np.random.default_rng(3)
        denoiser = objective.choose(rng, VOCABULARY)
        tokens = np.arange(3, 3 + denoiser.tokens_length, dtype=np.int32) % 250 + 3
        return denoiser(tokens, rng, VOCABULARY)

    first, second = make(), make()
    assert {name: part.tolist() for name, part in first.items()} == {
        name: part.tolist() for name, part in second.items()
    }


def test_ul2_draws_denoisers_at_their_rates_and_prepends_the_mode():
    rates = [1.0, 0.0, 2.0, 1.0, 1.0, 1.0, 4.0]
    objective, rng = UL2(inputs_length=96, targets_length=96, rates=rates), np.random.default_rng(0)
    made = objective._denoisers(VOCABULARY)
    indices = {id(denoiser): index for index, denoiser in enumerate(made)}
    draws = [indices[id(objective.choose(rng, VOCABULARY))] for _ in range(10000)]
    shares = np.bincount(draws, minlength=len(DENOISERS)) / len(draws)
    # Five standard deviations of a share of 10,000 draws are at most 0.025.
    np.testing.assert_allclose(shares, np.asarray(rates) / 10, atol=0.025)
    modes = [VOCABULARY.decode(denoiser.prefix) for denoiser in made]
    assert modes == ["[NLU]"] * 2 + ["[NLG]"] * 4 + ["[S2S]"]


def test_ul2_has_the_lengths_of_t5_for_every_denoiser():
    # Without mode tokens, these are the lengths of T5's random_spans_helper.
    modes = {"R": "", "X": "", "S": ""}
    objective = UL2(inputs_length=512, targets_length=512, mode_tokens=modes)
    made = [d.denoiser for d in objective._denoisers(VOCABULARY)]
    assert [d.tokens_length for d in made[:-1]] == [568, 588, 766, 908, 600, 1006]
    assert [d.targets_length for d in made[:-1]] == [114, 100, 512, 512, 92, 512]


def test_prefix_lm_splits_are_uniform():
    objective, rng = PrefixLM(inputs_length=9, targets_length=10), np.random.default_rng(1)
    tokens = np.arange(3, 13, dtype=np.int32)
    assert objective.tokens_length == len(tokens)
    cuts = [len(objective(tokens, rng, VOCABULARY)["inputs"]) for _ in range(9000)]
    counts = np.bincount(cuts, minlength=11)
    assert counts[0] == counts[10] == 0
    # Five standard deviations of 9,000 draws among nine.
    np.testing.assert_allclose(counts[1:10], 1000, atol=150)


def test_masked_tokens_become_a_sentinel_or_a_random_token_or_stay():
    objective, rng = MaskedLM(inputs_length=1001), np.random.default_rng(2)
    kinds = np.zeros(3)
    for _ in range(60):
        tokens = rng.integers(3, 259, 1000).astype(np.int32)
        example = objective(tokens, rng, VOCABULARY)
        chosen = example["target_weights"][:-1] > 0
        assert chosen.sum() == 150
        inputs = example["inputs"][:-1]
        np.testing.assert_array_equal(inputs[~chosen], tokens[~chosen])
        hidden, same = inputs[chosen] == VOCABULARY.sentinel(0), inputs[chosen] == tokens[chosen]
        kinds += [hidden.sum(), same.sum(), (~hidden & ~same).sum()]
        assert VOCABULARY.is_text(inputs[chosen & (inputs != VOCABULARY.sentinel(0))]).all()
    # 9,000 draws; one in 256 random tokens equals the original.
    np.testing.assert_allclose(kinds / 9000, [0.8, 0.1, 0.1], atol=0.016)


def test_a_pair_is_truncated_and_ended():
    supervised = Supervised(inputs_length=4, targets_length=2)
    example = supervised.from_pair(np.arange(5, 10), np.zeros(0, int), VOCABULARY)
    assert example["inputs"].tolist() == [5, 6, 7, EOS]
    assert example["targets"].tolist() == [EOS]


def test_a_denoiser_of_rate_zero_needs_no_sentinels():
    rates = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    UL2(inputs_length=512, targets_length=512, rates=rates).check(ByteVocabulary(num_sentinels=100))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrefixLM(inputs_length=4, targets_length=4, suffix_fraction=1.0), "suffix_fract"),
        (
            lambda: PrefixLM(inputs_length=4, targets_length=1),
            "PrefixLM.targets_length must be at least 2",
        ),
        (lambda: MaskedLM(inputs_length=1), "inputs_length must be at least 2"),
        (lambda: MaskedLM(inputs_length=9, noise_density=0.0), r"must be in \(0, 1\), got 0.0"),
        (lambda: Supervised(inputs_length=0, targets_length=1), "inputs_length must be at least 1"),
        (lambda: UL2(inputs_length=9, targets_length=9, rates=[1.0]), "rates must be 7 numbers"),
        (
            lambda: UL2(inputs_length=96, targets_length=9).check(VOCABULARY),
            "UL2.targets_length must be at least [0-9]+ tokens for inputs of 96, got 9",
        ),
        (
            lambda: UL2(inputs_length=8, targets_length=96).check(VOCABULARY),
            r"UL2.inputs_length must be at least 9 tokens, 5 of them for '\[NLU\]', got 8",
        ),
        (lambda: UL2(inputs_length=96, targets_length=1), "UL2.targets_length must be at least 2"),
        (
            lambda: UL2(inputs_length=512, targets_length=512).check(ByteVocabulary()),
            "removes .* spans .* has 125 sentinels; raise its num_sentinels",
        ),
        (
            lambda: MaskedLM(inputs_length=9).check(ByteVocabulary(num_sentinels=0)),
            "SpecialTokens.mask_id, got neither",
        ),
        *(
            (make, "_length must be at least [0-9] tokens? and at most 1,048,576, got 10000000000")
            for make in (
                lambda: Supervised(inputs_length=10**10, targets_length=8),
                lambda: SpanCorruption(inputs_length=10**10),
                lambda: UL2(inputs_length=10**10, targets_length=8),
                lambda: PrefixLM(inputs_length=8, targets_length=10**10),
                lambda: MaskedLM(inputs_length=10**10),
                lambda: Causal(targets_length=10**10),
            )
        ),
        (lambda: Supervised(inputs_length=8.0, targets_length=8), "inputs_length must be .* 8.0"),
        (
            lambda: SpanCorruption(inputs_length=512, noise_density=0.9999999),
            "noise_density must be small enough for texts of 4,194,304 tokens, got 0.9999999",
        ),
        (
            lambda: UL2(inputs_length=96, targets_length=96, mode_tokens={"R": "r"}),
            "mode_tokens must be a text for each of",
        ),
    ],
)
def test_fields_out_of_range_are_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()

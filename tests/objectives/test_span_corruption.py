import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.objectives.span_corruption import (
    SpanCorruption,
    random_segment_lengths,
    random_spans_noise_mask,
    span_corruption_lengths,
    split_at_sentinels,
)

VOCABULARY = ByteVocabulary(num_sentinels=300)


# Computed with T5's code: inputs, noise density, mean span -> tokens, targets.
SETTINGS = [
    (128, 0.15, 3.0, 141, 29),
    (256, 0.15, 3.0, 284, 58),
    (512, 0.15, 3.0, 568, 114),
    (1024, 0.15, 3.0, 1137, 229),
    (2048, 0.15, 3.0, 2274, 456),
    (512, 0.15, 8.0, 588, 100),
    (512, 0.5, 3.0, 766, 512),
    (512, 0.5, 8.0, 908, 512),
    (512, 0.15, 64.0, 600, 92),
    (512, 0.5, 64.0, 1006, 512),
]


@pytest.mark.parametrize(("inputs", "density", "mean", "tokens_length", "targets"), SETTINGS)
def test_lengths_masks_and_sentinels_are_t5s(inputs, density, mean, tokens_length, targets, rng):
    lengths = span_corruption_lengths(inputs, noise_density=density, mean_noise_span_length=mean)
    assert lengths == (tokens_length, targets)
    objective = SpanCorruption(
        inputs_length=inputs, noise_density=density, mean_noise_span_length=mean
    )
    # In float32, rounded half to even, as TensorFlow does.
    num_noise = int(np.round(np.float32(tokens_length) * np.float32(density)))
    num_spans = int(np.round(np.float32(num_noise) / np.float32(mean)))
    for _ in range(20):
        mask = objective._noise_mask(tokens_length, rng)
        starts = np.flatnonzero(np.diff(mask.astype(int), prepend=0) == 1)
        assert (len(mask), mask.sum(), len(starts)) == (tokens_length, num_noise, num_spans)
        assert (mask[0], mask[-1]) == (False, True)
        tokens = rng.integers(3, 259, tokens_length).astype(np.int32)
        example = objective(tokens, rng, VOCABULARY)
        assert (len(example["inputs"]), len(example["targets"])) == (inputs, targets)
        for part in ("inputs", "targets"):
            marks = split_at_sentinels(example[part], VOCABULARY)[1:]
            assert [index for index, _ in marks] == list(range(num_spans))
            assert example[part][-1] == VOCABULARY.eos_id
        assert example["targets"][0] == VOCABULARY.sentinel(0) == VOCABULARY.size - 1
        assert VOCABULARY.is_text(example["inputs"][:1]).all()


@pytest.mark.parametrize("length", [1, 2, 3, 10, 57, 568])
def test_mask_has_the_requested_noise_and_spans(length):
    mask = random_spans_noise_mask(
        length, np.random.default_rng(length), noise_density=0.15, mean_noise_span_length=3.0
    )
    assert len(mask) == length
    assert not mask[0]
    if length > 1:
        num_noise = max(round(length * 0.15), 1)
        assert mask.sum() == num_noise
        assert mask[-1]
        spans = np.sum(np.diff(mask.astype(int)) == 1)
        assert spans == max(round(num_noise / 3), 1)


def test_every_split_into_segments_is_equally_likely():
    rng = np.random.default_rng(0)
    draws = 6000
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        lengths = tuple(random_segment_lengths(5, 3, rng).tolist())
        counts[lengths] = counts.get(lengths, 0) + 1
    assert len(counts) == 6  # 4 choose 2
    # A count of 1000 has a standard deviation of 29.
    assert all(abs(count - draws / 6) < 130 for count in counts.values())


def test_corruption_of_a_handwritten_text():
    class Fixed(SpanCorruption):
        def _noise_mask(self, length, rng):
            return np.array([0, 1, 1, 0, 0, 1], bool)

    tokens = np.array([10, 11, 12, 13, 14, 15], np.int32)
    example = Fixed(inputs_length=64)(tokens, np.random.default_rng(0), VOCABULARY)
    first = VOCABULARY.size - 1
    assert example["inputs"].tolist() == [10, first, 13, 14, first - 1, 1]
    assert example["targets"].tolist() == [first, 11, 12, first - 1, 15, 1]


def test_too_few_sentinels_are_rejected():
    with pytest.raises(UserError, match=r"removes 114 spans from 2274 tokens.* has 100 sentinels"):
        SpanCorruption(inputs_length=2048).check(ByteVocabulary(num_sentinels=100))


@pytest.mark.parametrize(
    "wrong", [{"noise_density": 0.0}, {"noise_density": 1.0}, {"mean_noise_span_length": 0.5}]
)
def test_numbers_out_of_range_are_rejected(wrong):
    with pytest.raises(UserError, match=f"SpanCorruption.{next(iter(wrong))} must be"):
        SpanCorruption(inputs_length=512, **wrong)

"""T5's span corruption: spans are removed from the input, and the target restores them."""

import dataclasses

import numpy as np
from jaxtyping import Bool

from t5lite.core.errors import UserError
from t5lite.core.examples import Denoiser, Example, Sentinels, Tokens
from t5lite.core.fields import field_error
from t5lite.objectives.lengths import MAX_LENGTH, check_length
from t5lite.objectives.prefixed import with_first_ids

# A kept token, a removed one's sentinel, another kept token and an end of sequence.
MIN_INPUTS_LENGTH = 4


def span_corruption_lengths(
    inputs_length: int, *, noise_density: float = 0.15, mean_noise_span_length: float = 3.0
) -> tuple[int, int]:
    """Returns how many tokens of text fill `inputs_length`, and the length of their targets.

    Both lengths include the end-of-sequence token. At a noise density of one half, the targets are
    never longer than the inputs.

    Args:
        inputs_length: tokens of the corrupted inputs, at least 2.

    >>> span_corruption_lengths(512)
    (568, 114)
    >>> span_corruption_lengths(512, noise_density=0.5)
    (766, 512)

    Source: google-research/text-to-text-transfer-transformer@main:t5/data/preprocessors.py,
    random_spans_helper.
    Differs: there is always at least one span, as in the mask. T5 assumes none if few tokens are
    noise, and then truncates the inputs.
    """

    def lengths(tokens_length: int) -> tuple[int, int]:
        # Python's rounding in float64 here and float32 in the mask, as in T5.
        num_noise = max(round(tokens_length * noise_density), 1)
        num_spans = max(round(num_noise / mean_noise_span_length), 1)
        return tokens_length - num_noise + num_spans + 1, num_noise + num_spans + 1

    tokens_length = inputs_length
    while lengths(tokens_length + 1)[0] <= inputs_length:
        tokens_length += 1
    corrupted, targets_length = lengths(tokens_length)
    if noise_density == 0.5 and targets_length > corrupted:
        tokens_length -= 1
        targets_length -= 1
    return tokens_length, targets_length


def random_segment_lengths(
    num_items: int, num_segments: int, rng: np.random.Generator
) -> np.ndarray:
    """Splits `num_items` into `num_segments` positive lengths; all splits are equally likely."""
    ends = np.empty(num_segments + 1, np.int64)
    ends[0] = 0
    ends[-1] = num_items
    if num_segments > 1:
        # The indices of the smallest random numbers: cheaper than rng.choice.
        cuts = rng.random(num_items - 1).argpartition(num_segments - 2)[: num_segments - 1]
        cuts.sort()
        ends[1:-1] = cuts + 1
    return ends[1:] - ends[:-1]


def random_spans_noise_mask(
    length: int, rng: np.random.Generator, *, noise_density: float, mean_noise_span_length: float
) -> Bool[np.ndarray, "length"]:
    """Returns which tokens are noise: kept text and noise spans alternate, kept text first.

    >>> mask = random_spans_noise_mask(
    ...     568, np.random.default_rng(0), noise_density=0.15, mean_noise_span_length=3.0)
    >>> int(mask.sum()), int(np.sum(mask[1:] > mask[:-1])), bool(mask[0]), bool(mask[-1])
    (85, 28, False, True)
    """
    whole = max(length, 2)
    rounded = round(float(np.float32(whole) * np.float32(noise_density)))
    num_noise = min(max(rounded, 1), whole - 1)
    wanted = round(float(np.float32(num_noise) / np.float32(mean_noise_span_length)))
    num_spans = min(max(wanted, 1), num_noise, whole - num_noise)
    noise = random_segment_lengths(num_noise, num_spans, rng)
    kept = random_segment_lengths(whole - num_noise, num_spans, rng)
    runs = np.empty(2 * num_spans, np.int64)
    runs[0::2] = kept
    runs[1::2] = noise
    return np.repeat(np.arange(2 * num_spans) % 2 == 1, runs)[:length]


def corrupt(
    tokens: Tokens, noise_mask: Bool[np.ndarray, "length"], vocabulary: Sentinels
) -> tuple[Tokens, Tokens]:
    """Returns the text with a sentinel for each noise span, and the noise spans with sentinels.

    In the targets, a sentinel stands for each kept span, so they begin with the first sentinel.

    >>> from t5lite.data.text.vocabularies import ByteVocabulary
    >>> mask = np.array([False, True, True, False, True])
    >>> [tokens.tolist() for tokens in corrupt(np.arange(5, 10), mask, ByteVocabulary())]
    [[5, 383, 8, 382], [383, 6, 7, 382, 9]]
    """
    changes = (noise_mask[1:] != noise_mask[:-1]).nonzero()[0] + 1
    noise_starts = changes[0::2]
    kept_starts = np.concatenate([[0], changes[1::2]])
    top = vocabulary.sentinel(0)
    return (
        _mark(tokens, ~noise_mask, noise_starts, top),
        _mark(tokens, noise_mask.copy(), kept_starts, top),
    )


def _mark(tokens: Tokens, keep: np.ndarray, starts: np.ndarray, top: int) -> Tokens:
    """Returns the tokens in `keep`, with sentinels from `top` downwards at `starts`."""
    marked = tokens.copy()
    marked[starts] = np.arange(top, top - len(starts), -1)
    keep[starts] = True
    return marked[keep]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Span corruption to inputs of `inputs_length` tokens, end of sequence included.

    Args:
        inputs_length: tokens of a full input, with the first token that the vocabulary may have.
        noise_density: fraction of the text that is removed, in (0, 1).
        mean_noise_span_length: in tokens, at least 1.

    Raises:
        UserError: if a number is out of range.
    """

    inputs_length: int
    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0
    lookahead: int = dataclasses.field(default=0, init=False)
    tokens_length: int = dataclasses.field(init=False)
    targets_length: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise field_error(self, "noise_density", "in (0, 1)")
        if not 1 <= self.mean_noise_span_length < float("inf"):
            raise field_error(self, "mean_noise_span_length", "at least 1 token")
        check_length(self, "inputs_length", MIN_INPUTS_LENGTH)
        # The search below takes a step for every token of the text.
        if self.inputs_length / (1 - self.noise_density) > 4 * MAX_LENGTH:
            raise field_error(
                self, "noise_density", f"small enough for texts of {4 * MAX_LENGTH:,} tokens"
            )
        tokens_length, targets_length = span_corruption_lengths(
            self.inputs_length,
            noise_density=self.noise_density,
            mean_noise_span_length=self.mean_noise_span_length,
        )
        object.__setattr__(self, "tokens_length", tokens_length)
        object.__setattr__(self, "targets_length", targets_length)

    @property
    def total_length(self) -> int:
        """Tokens of inputs and targets together."""
        return self.inputs_length + self.targets_length

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError if a full example has more spans than the vocabulary has sentinels."""
        with_first_ids(self, vocabulary)
        self.check_sentinels(vocabulary)

    def check_sentinels(self, vocabulary: Sentinels) -> None:
        """Raises a UserError if a full example has more spans than the vocabulary has sentinels."""
        mask = self._noise_mask(self.tokens_length, np.random.default_rng(0))
        num_spans = int(np.sum(mask[1:] > mask[:-1]))
        if num_spans > vocabulary.num_sentinels:
            raise UserError(
                f"SpanCorruption removes {num_spans} spans from {self.tokens_length} tokens, but "
                f"the vocabulary has {vocabulary.num_sentinels} sentinels; raise its "
                "num_sentinels or lower inputs_length"
            )

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> Denoiser:
        denoiser: Denoiser = with_first_ids(self, vocabulary)
        return denoiser

    def __call__(self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels) -> Example:
        mask = self._noise_mask(len(tokens), rng)
        inputs, targets = corrupt(tokens, mask, vocabulary)
        return {
            "inputs": _ended(inputs, self.inputs_length, vocabulary.last_input_ids),
            "targets": _ended(targets, self.targets_length, (vocabulary.eos_id,)),
        }

    def _noise_mask(self, length: int, rng: np.random.Generator) -> Bool[np.ndarray, "length"]:
        return random_spans_noise_mask(
            length,
            rng,
            noise_density=self.noise_density,
            mean_noise_span_length=self.mean_noise_span_length,
        )


def _ended(tokens: Tokens, length: int, last: tuple[int, ...]) -> Tokens:
    kept = tokens[: length - len(last)]
    ended = np.empty(len(kept) + len(last), np.int32)
    ended[: len(kept)] = kept
    ended[len(kept) :] = last
    return ended


def split_at_sentinels(tokens: Tokens, vocabulary: Sentinels) -> list[tuple[int | None, Tokens]]:
    """Returns pairs (sentinel index, tokens up to the next sentinel), in order.

    The first pair is (None, tokens before the first sentinel). The end of sequence and everything
    after it is dropped.
    """
    ends = np.flatnonzero(tokens == vocabulary.eos_id)
    tokens = tokens[: ends[0]] if len(ends) else tokens
    first = vocabulary.sentinel(0)
    last = vocabulary.sentinel(vocabulary.num_sentinels - 1)
    starts = np.flatnonzero((last <= tokens) & (tokens <= first))
    pieces = np.split(tokens, starts)
    parts: list[tuple[int | None, Tokens]] = [(None, pieces[0])]
    return parts + [(first - int(piece[0]), piece[1:]) for piece in pieces[1:]]


def fill_spans(inputs: Tokens, targets: Tokens, vocabulary: Sentinels) -> list[tuple[bool, Tokens]]:
    """Returns the text of an example in parts, with the spans of `targets` filled into `inputs`.

    Returns:
        Pairs (is_span, tokens). A span that `targets` does not contain is empty. The tokens of an
        example of `SpanCorruption` concatenate to the original text.
    """
    spans = dict(split_at_sentinels(targets, vocabulary))
    parts = []
    for index, kept in split_at_sentinels(inputs, vocabulary):
        if index is not None:
            parts.append((True, spans.get(index, kept[:0])))
        parts.append((False, kept))
    return parts

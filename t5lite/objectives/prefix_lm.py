"""Prefix language modelling: the text after a cut is predicted from the text before it."""

import dataclasses

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Example, Sentinels, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM:
    """A piece of text is cut in two: the first part is the input, the second the target.

    Args:
        inputs_length, targets_length: of the longest example, in tokens; the targets' end of
            sequence is included, the inputs have none, for the text runs on.
        suffix_fraction: share of the piece that is the target, in (0, 1); None for a cut anywhere,
            every place equally likely.

    Raises:
        UserError: for numbers out of these ranges.

    Source: google-research/text-to-text-transfer-transformer@main:t5/data/preprocessors.py,
    prefix_lm with random_prefix_noise_mask; Tay et al., UL2, section 3.1.1 for a fixed share.
    Differs: T5 closes the inputs with an end of sequence too.
    """

    inputs_length: int
    targets_length: int
    suffix_fraction: float | None = None
    lookahead: int = dataclasses.field(default=0, init=False)
    tokens_length: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        share = self.suffix_fraction
        if share is not None and not 0 < share < 1:
            raise UserError(f"PrefixLM.suffix_fraction must be in (0, 1), got {share}")
        if self.inputs_length < 1 or self.targets_length < 2:
            raise UserError(
                "PrefixLM needs inputs_length of at least 1 token and targets_length of at least "
                f"2, got {self.inputs_length} and {self.targets_length}"
            )
        length = min(self.inputs_length + 1, self.targets_length)
        if share is not None:
            # One more token can make the targets longer or the inputs, never shorter.
            while self._fits(length + 1):
                length += 1
        object.__setattr__(self, "tokens_length", length)

    def _fits(self, length: int) -> bool:
        suffix = self._suffix(length)
        return length - suffix <= self.inputs_length and suffix + 1 <= self.targets_length

    def _suffix(self, length: int) -> int:
        assert self.suffix_fraction is not None
        return min(max(round(length * self.suffix_fraction), 1), max(length - 1, 1))

    @property
    def total_length(self) -> int:
        """Of inputs and targets together, in tokens."""
        return self.tokens_length + 1

    def check(self, vocabulary: Sentinels) -> None:
        """Any vocabulary serves."""

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> "PrefixLM":
        return self

    def __call__(self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels) -> Example:
        """Returns the example of one piece; a single token is all target.

        >>> from t5lite.data.text.vocabularies import ByteVocabulary
        >>> objective = PrefixLM(inputs_length=6, targets_length=3, suffix_fraction=0.25)
        >>> objective.tokens_length
        8
        >>> example = objective(
        ...     np.arange(10, 18), np.random.default_rng(0), ByteVocabulary())
        >>> example["inputs"].tolist(), example["targets"].tolist()
        ([10, 11, 12, 13, 14, 15], [16, 17, 1])
        """
        if self.suffix_fraction is not None:
            cut = len(tokens) - self._suffix(len(tokens))
        else:
            cut = int(rng.integers(min(1, len(tokens) - 1), max(len(tokens), 1)))
        targets = np.append(tokens[cut:], vocabulary.eos_id).astype(np.int32)
        return {"inputs": tokens[:cut], "targets": targets}

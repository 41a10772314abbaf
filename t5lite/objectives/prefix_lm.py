"""Prefix language modelling: predict the text after a split from the text before it."""

import dataclasses
from typing import ClassVar

import numpy as np

from t5lite.core.examples import Denoiser, Example, Sentinels, Tokens
from t5lite.core.fields import field_error
from t5lite.objectives.lengths import check_length
from t5lite.objectives.prefixed import with_first_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM:
    """Text is split in two: the first part is the input, the second part is the target.

    Args:
        inputs_length, targets_length: of the longest example, in tokens. The targets include their
            end of sequence; the inputs have none, because the text continues. They include the
            first token that the vocabulary may have.
        suffix_fraction: fraction of the text that is the target, in (0, 1); None to split at a
            position drawn uniformly.

    Raises:
        UserError: if a number is out of range.

    Source: google-research/text-to-text-transfer-transformer@main:t5/data/preprocessors.py,
    prefix_lm with random_prefix_noise_mask; Tay et al., UL2, section 3.1.1 for a fixed fraction.
    Differs: T5 also ends the inputs with an end of sequence.
    """

    # Targets are the end of the text, so that each has the weight of its token in a dialogue.
    targets_end_text: ClassVar[bool] = True

    inputs_length: int
    targets_length: int
    suffix_fraction: float | None = None
    lookahead: int = dataclasses.field(default=0, init=False)
    tokens_length: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        fraction = self.suffix_fraction
        if fraction is not None and not 0 < fraction < 1:
            raise field_error(self, "suffix_fraction", "in (0, 1)")
        check_length(self, "inputs_length", 1)
        check_length(self, "targets_length", 2)
        length = min(self.inputs_length + 1, self.targets_length)
        if fraction is not None:
            # One more token lengthens the inputs or the targets, and shortens neither.
            while self._fits(length + 1):
                length += 1
        object.__setattr__(self, "tokens_length", length)

    def _fits(self, length: int) -> bool:
        suffix = self._suffix_length(length)
        return length - suffix <= self.inputs_length and suffix + 1 <= self.targets_length

    def _suffix_length(self, length: int) -> int:
        assert self.suffix_fraction is not None
        return min(max(round(length * self.suffix_fraction), 1), max(length - 1, 1))

    @property
    def total_length(self) -> int:
        """Tokens of inputs and targets together."""
        return self.tokens_length + 1

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError if the vocabulary's first input ids leave no inputs."""
        with_first_ids(self, vocabulary)

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> Denoiser:
        denoiser: Denoiser = with_first_ids(self, vocabulary)
        return denoiser

    def __call__(self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels) -> Example:
        """Returns the example of one text; a text of one token is all target.

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
            split = len(tokens) - self._suffix_length(len(tokens))
        else:
            split = int(rng.integers(min(1, len(tokens) - 1), max(len(tokens), 1)))
        targets = np.append(tokens[split:], vocabulary.eos_id).astype(np.int32)
        return {"inputs": tokens[:split], "targets": targets}

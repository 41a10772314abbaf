"""Supervised text-to-text learning: an input and its target."""

import dataclasses

import numpy as np

from t5lite.core.examples import Example, Sentinels, Tokens
from t5lite.objectives.lengths import check_length
from t5lite.objectives.prefixed import framed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised:
    """Both texts unchanged, each with an end of sequence; longer texts are truncated.

    Args:
        inputs_length, targets_length: of the longest example, in tokens including the end of
            sequence and, of inputs, the first token that the vocabulary may have.

    Raises:
        UserError: if a length is out of range.
    """

    inputs_length: int
    targets_length: int

    def __post_init__(self) -> None:
        check_length(self, "inputs_length", 1)
        check_length(self, "targets_length", 1)

    @property
    def total_length(self) -> int:
        """Tokens of inputs and targets together."""
        return self.inputs_length + self.targets_length

    def check(self, vocabulary: Sentinels) -> None:
        """Accepts every vocabulary."""

    def from_pair(self, inputs: Tokens, targets: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the example of one pair.

        >>> from t5lite.data.text.vocabularies import ByteVocabulary
        >>> supervised = Supervised(inputs_length=3, targets_length=3)
        >>> example = supervised.from_pair(
        ...     np.array([7, 8, 9, 7]), np.array([5]), ByteVocabulary())
        >>> example["inputs"].tolist(), example["targets"].tolist()
        ([7, 8, 1], [5, 1])

        Source: google/seqio@main:seqio/preprocessors.py, append_eos_after_trim.
        """
        eos = vocabulary.eos_id
        return {
            "inputs": framed(inputs, self.inputs_length, vocabulary),
            "targets": np.append(targets[: self.targets_length - 1], eos).astype(np.int32),
        }

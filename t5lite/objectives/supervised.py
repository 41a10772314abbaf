"""Supervised text-to-text: an input and the target that goes with it."""

import dataclasses

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Example, Sentinels, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised:
    """Both texts as they are, each closed by an end of sequence; what is too long is cut.

    Args:
        inputs_length, targets_length: of the longest example, in tokens, the end included.

    Raises:
        UserError: for lengths under 1.
    """

    inputs_length: int
    targets_length: int

    def __post_init__(self) -> None:
        for name in ("inputs_length", "targets_length"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"Supervised.{name} must be at least 1 token, got {getattr(self, name)}"
                )

    @property
    def total_length(self) -> int:
        """Of inputs and targets together, in tokens."""
        return self.inputs_length + self.targets_length

    def check(self, vocabulary: Sentinels) -> None:
        """Any vocabulary serves."""

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
            "inputs": np.append(inputs[: self.inputs_length - 1], eos).astype(np.int32),
            "targets": np.append(targets[: self.targets_length - 1], eos).astype(np.int32),
        }

"""Classes for an encoder to decide between: one for an example, or one for each word of it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5lite.core.errors import UserError, suggestion
from t5lite.core.examples import Example, Sentinels, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Classes:
    """What both have.

    Args:
        inputs_length: of the longest example, in tokens, its end of sequence included; what is too
            long is cut.
        classes: the names, in the order of the model's logits.

    Raises:
        UserError: for a length under 2, or fewer than two names or a name twice.
    """

    inputs_length: int
    classes: Sequence[Any]

    def __post_init__(self) -> None:
        owner = type(self).__name__
        if self.inputs_length < 2:
            raise UserError(
                f"{owner}.inputs_length must be at least 2 tokens, got {self.inputs_length}"
            )
        if wrong := [name for name in self.classes if not isinstance(name, str)]:
            raise UserError(f"{owner}.classes must be texts, as in ['0', '1'], got {wrong[0]!r}")
        # A list, as gin files have it, could not be looked up by.
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise UserError(
                f"{owner}.classes must be two or more names, all different, got {self.classes}"
            )

    @property
    def targets_length(self) -> int:
        """As long as the inputs, place by place."""
        return self.inputs_length

    @property
    def total_length(self) -> int:
        """Of inputs and targets together, in tokens."""
        return self.inputs_length

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError where the vocabulary cannot tell the names of two classes apart."""
        _numbers(tuple(self.classes), vocabulary)


class Classification(_Classes):
    """One class for an example, decided at its first token. Its target is the name of the class."""

    def from_pair(self, inputs: Tokens, targets: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the example of an input and the name of its class.

        >>> from t5lite.data.text.vocabularies import ByteVocabulary
        >>> encode = ByteVocabulary().encode
        >>> objective = Classification(inputs_length=5, classes=["no", "yes"])
        >>> example = objective.from_pair(encode("ab"), encode("yes"), ByteVocabulary())
        >>> {name: tokens.tolist() for name, tokens in example.items()}
        {'inputs': [100, 101, 1], 'targets': [1, 0, 0], 'target_weights': [1, 0, 0]}
        """
        ids = np.append(inputs[: self.inputs_length - 1], vocabulary.eos_id).astype(np.int32)
        (number,) = _classes_of([vocabulary.decode(targets)], tuple(self.classes), vocabulary)
        return _placed(ids, np.array([0]), np.array([number]))


class Tagging(_Classes):
    """One class for each word of an example. Its target is their names with spaces between them.

    A word's class is decided at its first token; words are what spaces separate. Where words are
    cut off, so are their classes.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if spaced := [name for name in self.classes if name.split() != [name]]:
            raise UserError(f"Tagging.classes must be names without spaces, got {spaced[0]!r}")

    def from_pair(self, inputs: Tokens, targets: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the example of a text and the names of its words' classes.

        Raises:
            UserError: where there are more or fewer names than words.

        >>> from t5lite.data.text.vocabularies import ByteVocabulary
        >>> encode = ByteVocabulary().encode
        >>> objective = Tagging(inputs_length=9, classes=["O", "B"])
        >>> example = objective.from_pair(encode("ab c"), encode("O B"), ByteVocabulary())
        >>> example["targets"].tolist(), example["target_weights"].tolist()
        ([0, 0, 0, 1, 0], [1, 0, 0, 1, 0])
        """
        names, starts = vocabulary.decode(targets).split(), vocabulary.word_starts(inputs)
        if len(names) != len(starts):
            text = vocabulary.decode(inputs)
            raise UserError(
                f"Tagging needs a class for each word, got {len(names)} for {len(starts)} words: "
                f"{text[:60]!r}"
            )
        numbers = np.array(_classes_of(names, tuple(self.classes), vocabulary), np.int32)
        kept = starts < self.inputs_length - 1
        ids = np.append(inputs[: self.inputs_length - 1], vocabulary.eos_id).astype(np.int32)
        return _placed(ids, starts[kept], numbers[kept])


@functools.lru_cache(maxsize=64)
def _numbers(classes: tuple[str, ...], vocabulary: Sentinels) -> dict[str, int]:
    """The number of each class by its name as the vocabulary gives it back."""
    known = {_back(name, vocabulary): number for number, name in enumerate(classes)}
    if len(known) < len(classes) or "" in known:
        raise UserError(
            f"the vocabulary cannot tell these classes apart: {classes}; name them otherwise"
        )
    return known


def _back(name: str, vocabulary: Sentinels) -> str:
    return vocabulary.decode(vocabulary.encode(name)).strip()


def _classes_of(names: Sequence[str], classes: tuple[str, ...], vocabulary: Sentinels) -> list[int]:
    known = _numbers(classes, vocabulary)
    for name in names:
        if name.strip() not in known:
            raise UserError(
                f"classes must hold every target, got {name.strip()!r}; "
                f"{suggestion(name.strip(), known)}"
            )
    return [known[name.strip()] for name in names]


def _placed(inputs: Tokens, places: np.ndarray, numbers: np.ndarray) -> Example:
    targets, weights = np.zeros_like(inputs), np.zeros_like(inputs)
    targets[places], weights[places] = numbers, 1
    return {"inputs": inputs, "targets": targets, "target_weights": weights}

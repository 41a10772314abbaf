"""Classification with an encoder: one class per example, or one class per word."""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from t5lite.core.errors import UserError, suggestion
from t5lite.core.examples import Example, Found, Prediction, Sentinels, Tokens
from t5lite.core.fields import field_error, field_name
from t5lite.objectives.lengths import check_length
from t5lite.objectives.prefixed import exceeds, framed


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Classes(abc.ABC):
    """The fields that `Classification` and `Tagging` share.

    Args:
        inputs_length: of the longest example, in tokens including the first token that the
            vocabulary may have and the end of sequence; longer inputs are truncated.
        classes: class names, in the order of the model's logits.

    Raises:
        UserError: for a length under 2, fewer than two names, or a repeated name.
    """

    span_length: ClassVar[int] = 0

    inputs_length: int
    classes: Sequence[Any]

    def __post_init__(self) -> None:
        check_length(self, "inputs_length", 2)
        if wrong := [name for name in self.classes if not isinstance(name, str)]:
            raise UserError(
                f"{field_name(self, 'classes')} must be strings, as in ['0', '1'], got {wrong[0]!r}"
            )
        # gin passes a list, which is not hashable.
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise field_error(self, "classes", "two or more different names")

    @property
    def targets_length(self) -> int:
        """The same as the inputs: a target for each position."""
        return self.inputs_length

    @property
    def total_length(self) -> int:
        """Tokens of the inputs; targets take no further positions."""
        return self.inputs_length

    @property
    def part_length(self) -> int:
        """The same as the inputs: an input has one part."""
        return self.inputs_length

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError if two class names have the same tokens in the vocabulary."""
        _class_numbers(tuple(self.classes), vocabulary)

    @abc.abstractmethod
    def from_inputs(self, inputs: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the example of an input whose classes are not known."""

    def parts(self, inputs: Tokens, vocabulary: Sentinels) -> list[Example]:
        """Returns the example of an input whose classes are not known, its only part."""
        return [self.from_inputs(inputs, vocabulary)]

    def is_cut(self, inputs: Tokens, vocabulary: Sentinels) -> bool:
        """Whether an input is truncated."""
        return exceeds(inputs, self.inputs_length, vocabulary)

    def answer(
        self, parts: Sequence[Example], found: Sequence[Found], vocabulary: Sentinels
    ) -> Prediction:
        """Returns the names of the classes predicted for an input, and their log-probability."""
        ((numbers, (score,)),) = found
        return Prediction(self.prediction(parts[0], numbers, vocabulary), score)

    def prediction(self, example: Example, numbers: Tokens, vocabulary: Sentinels) -> str:
        """Returns the names of the classes predicted for an example, separated by spaces."""
        counted = numbers[example["target_weights"] > 0]
        return " ".join(self.classes[number] for number in counted)

    def _numbers_of(self, names: Sequence[str], vocabulary: Sentinels) -> list[int]:
        known = _class_numbers(tuple(self.classes), vocabulary)
        for name in names:
            if name.strip() not in known:
                raise UserError(
                    f"{field_name(self, 'classes')} must hold every target, got {name.strip()!r}; "
                    f"{suggestion(name.strip(), known)}"
                )
        return [known[name.strip()] for name in names]


class Classification(_Classes):
    """One class per example, predicted at its first token. The target is the class name."""

    def from_pair(self, inputs: Tokens, targets: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the example of an input and the name of its class.

        Raises:
            UserError: if the target is not a class name.

        >>> from t5lite.data.text.vocabularies import ByteVocabulary
        >>> encode = ByteVocabulary().encode
        >>> objective = Classification(inputs_length=5, classes=["no", "yes"])
        >>> example = objective.from_pair(encode("ab"), encode("yes"), ByteVocabulary())
        >>> {name: tokens.tolist() for name, tokens in example.items()}
        {'inputs': [100, 101, 1], 'targets': [1, 0, 0], 'target_weights': [1, 0, 0]}
        """
        (number,) = self._numbers_of([vocabulary.decode(targets)], vocabulary)
        example = self.from_inputs(inputs, vocabulary)
        example["targets"][0] = number
        return example

    def from_inputs(self, inputs: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the example of an input whose class is not known."""
        ids = framed(inputs, self.inputs_length, vocabulary)
        return _labelled(ids, np.array([0]), np.array([0]))


class Tagging(_Classes):
    """One class per word. The target is the class names, separated by spaces.

    The class of a word is predicted at its first token. Words are separated by white space. The
    words that truncation removes lose their classes too. A field that is a list, of words or of
    class names, is joined with spaces; see `data.text.templates`.

    Raises:
        UserError: as `Classification` does, and for a class name with a space.
    """

    # A template of a task joins a list with this.
    list_separator: ClassVar[str] = " "
    # Words that are added or removed would have other classes.
    has_word_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if spaced := [name for name in self.classes if name.split() != [name]]:
            raise UserError(
                f"{field_name(self, 'classes')} must be names without spaces, got {spaced[0]!r}"
            )

    def from_pair(self, inputs: Tokens, targets: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the example of a text and the class names of its words.

        Raises:
            UserError: if the numbers of names and words differ, or a name is not a class.

        >>> from t5lite.data.text.vocabularies import ByteVocabulary
        >>> encode = ByteVocabulary().encode
        >>> objective = Tagging(inputs_length=9, classes=["O", "B"])
        >>> example = objective.from_pair(encode("ab c"), encode("O B"), ByteVocabulary())
        >>> example["targets"].tolist(), example["target_weights"].tolist()
        ([0, 0, 0, 1, 0], [1, 0, 0, 1, 0])
        """
        names = vocabulary.decode(targets).split()
        starts = vocabulary.word_starts(inputs)
        if len(names) != len(starts):
            text = vocabulary.decode(inputs)
            raise UserError(
                f"Tagging needs one class per word, got {len(names)} for {len(starts)} words: "
                f"{text[:60]!r}"
            )
        numbers = np.array(self._numbers_of(names, vocabulary), np.int32)
        return self._example(inputs, starts, numbers, vocabulary)

    def from_inputs(self, inputs: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the example of a text whose classes are not known."""
        starts = vocabulary.word_starts(inputs)
        return self._example(inputs, starts, np.zeros_like(starts), vocabulary)

    def _example(
        self, inputs: Tokens, starts: Tokens, numbers: np.ndarray, vocabulary: Sentinels
    ) -> Example:
        ids = framed(inputs, self.inputs_length, vocabulary)
        positions = starts + len(vocabulary.first_input_ids)
        kept = positions < len(ids) - len(vocabulary.last_input_ids)
        return _labelled(ids, positions[kept], numbers[kept])


@functools.lru_cache(maxsize=64)
def _class_numbers(classes: tuple[str, ...], vocabulary: Sentinels) -> dict[str, int]:
    """Returns the number of each class, by its name after encoding and decoding."""
    known = {_round_trip(name, vocabulary): number for number, name in enumerate(classes)}
    if len(known) < len(classes) or "" in known:
        raise UserError(
            f"the vocabulary encodes two of these classes alike: {classes}; rename one of them"
        )
    return known


def _round_trip(name: str, vocabulary: Sentinels) -> str:
    return vocabulary.decode(vocabulary.encode(name)).strip()


def _labelled(inputs: Tokens, positions: np.ndarray, numbers: np.ndarray) -> Example:
    """Returns an example whose targets are class numbers at `positions`, of weight 1 there."""
    targets = np.zeros_like(inputs)
    weights = np.zeros_like(inputs)
    targets[positions] = numbers
    weights[positions] = 1
    return {"inputs": inputs, "targets": targets, "target_weights": weights}

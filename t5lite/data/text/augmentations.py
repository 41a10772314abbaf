"""Augmentations: random changes of a record, made anew whenever training reads it.

An augmentation takes the fields of a record after its preprocessors, and a random generator of its
own for this reading. Evaluation, `infer` and statistics read records as they are. Name your own
class in gin as "module:name".
"""

import abc
import dataclasses
import functools
import hashlib
import inspect
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from t5lite.core.errors import UserError, suggestion
from t5lite.core.fields import field_error, field_name
from t5lite.data.text.fields import Record, as_field, map_texts
from t5lite.data.text.vocabulary import Vocabulary


@runtime_checkable
class Augmentation(Protocol):
    """Changes a record at random.

    `augment(record, rng, vocabulary)` returns the changed record. All randomness comes from `rng`;
    the special pieces of the vocabulary, which `vocabulary.kept_texts` matches, stay as they are.
    """

    def augment(
        self, record: Record, rng: np.random.Generator, vocabulary: Vocabulary
    ) -> Record: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WordChange(abc.ABC):
    """The fields that the augmentations of this module share.

    Words are separated by white space. A word with a special piece of the vocabulary, such as
    `<extra_id_0>`, stays as it is. In a list, each text is changed by itself.

    Args:
        fields: the fields of a record that are changed.
        fraction: fraction of the words, in (0, 1).

    Raises:
        UserError: without a field, or if a number is out of range.
    """

    fields: Sequence[str]
    fraction: float = 0.1

    def __post_init__(self) -> None:
        if not self.fields or not all(isinstance(field, str) for field in self.fields):
            raise field_error(self, "fields", "names of fields, as in ['text']")
        # gin passes a list, which is not hashable.
        object.__setattr__(self, "fields", tuple(self.fields))
        if not 0 < self.fraction < 1:
            raise field_error(self, "fraction", "in (0, 1)")

    def augment(self, record: Record, rng: np.random.Generator, vocabulary: Vocabulary) -> Record:
        """Returns the record with changed fields.

        Raises:
            UserError: if the record has no such field.
        """
        changed = dict(record)
        for field in self.fields:
            if field not in record:
                owner = field_name(self, "fields")
                raise UserError(f"{owner} names the field {field!r}; {suggestion(field, record)}")
            change = functools.partial(self._changed, rng=rng, vocabulary=vocabulary)
            changed[field] = map_texts(record[field], change)
        return changed

    def _changed(self, text: str, rng: np.random.Generator, vocabulary: Vocabulary) -> str:
        words = _Words.of(text, vocabulary.kept_texts)
        if len(words.free):
            self._change(words, rng, vocabulary)
        return str(words)

    @abc.abstractmethod
    def _change(
        self, words: "_Words", rng: np.random.Generator, vocabulary: Vocabulary
    ) -> None: ...


@dataclasses.dataclass
class _Words:
    """A text as words with the white space before each of them.

    Args:
        words: (white space, word) in order; None for a word that was removed.
        start, end: white space before the first and after the last word.
        free: numbers of the words without a special piece.
        text: before any change.
    """

    words: list[tuple[str, str] | None]
    start: str
    end: str
    free: Sequence[int]
    text: str

    @staticmethod
    def of(text: str, kept: re.Pattern[str] | None) -> "_Words":
        found = list(re.finditer(r"(\s*)(\S+)", text))
        marks = [mark.span() for mark in kept.finditer(text)] if kept else []
        free = [
            number
            for number, word in enumerate(found)
            if not any(start < word.end() and word.start() < stop for start, stop in marks)
        ]
        start = found[0][1] if found else ""
        end = text[found[-1].end() :] if found else text
        return _Words([(word[1], word[2]) for word in found], start, end, free, text)

    def __str__(self) -> str:
        left = [word for word in self.words if word is not None]
        texts = [
            (space if number else self.start) + word for number, (space, word) in enumerate(left)
        ]
        return "".join(texts) + self.end

    def replace(self, number: int, word: str) -> None:
        """Replaces a word; an empty one is removed, with the white space before it."""
        old = self.words[number]
        assert old is not None, "a word is changed once"
        self.words[number] = (old[0], word) if word else None


class DropWords(_WordChange):
    """Removes each word with a probability of `fraction`; one of them always stays.

    >>> from t5lite.data.text.vocabularies import ByteVocabulary
    >>> drop = DropWords(fields=["text"], fraction=0.5)
    >>> record = {"text": "a b <extra_id_0> c d"}
    >>> drop.augment(record, np.random.default_rng(0), ByteVocabulary())
    {'text': 'a <extra_id_0>'}

    Source: Wei and Zou, EDA, section 2, random deletion.
    """

    def _change(self, words: _Words, rng: np.random.Generator, vocabulary: Vocabulary) -> None:
        is_dropped = rng.random(len(words.free)) < self.fraction
        if is_dropped.all() and len(words.free) == len(words.words):
            is_dropped[rng.integers(len(is_dropped))] = False
        for number in np.asarray(words.free)[is_dropped].tolist():
            words.replace(number, "")


class SwapWords(_WordChange):
    """Exchanges pairs of words, `fraction` of the number of words times and at least once.

    >>> from t5lite.data.text.vocabularies import ByteVocabulary
    >>> swap = SwapWords(fields=["text"])
    >>> record = {"text": "a b <extra_id_0> c d"}
    >>> swap.augment(record, np.random.default_rng(0), ByteVocabulary())
    {'text': 'a b <extra_id_0> d c'}

    Source: Wei and Zou, EDA, section 2, random swap.
    """

    def _change(self, words: _Words, rng: np.random.Generator, vocabulary: Vocabulary) -> None:
        if len(words.free) < 2:
            return
        order = np.array(words.free)
        for _ in range(max(1, round(self.fraction * len(order)))):
            one, other = rng.choice(len(order), 2, replace=False)
            order[[one, other]] = order[[other, one]]
        before = list(words.words)
        for number, source in zip(words.free, order.tolist(), strict=True):
            moved = before[source]
            assert moved is not None, "no word was removed"
            words.replace(number, moved[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanNoise(_WordChange):
    """Replaces random spans of words, `fraction` of all words together, by a mask each.

    Args:
        mean_words: mean length of a span in words, at least 1.
        mask: what replaces a span: a special piece of the vocabulary such as '[MASK]', in which
            `{n}` is the number of the span, without numbers that the text has; '' to remove spans.

    Raises:
        UserError: if a number is out of range, or, when a record is read, if the mask is no special
            piece of the vocabulary.

    >>> from t5lite.data.text.vocabularies import ByteVocabulary
    >>> noise = SpanNoise(fields=["text"], fraction=0.4, mean_words=2)
    >>> noise.augment({"text": "a b c d e"}, np.random.default_rng(1), ByteVocabulary())
    {'text': 'a <extra_id_0> d e'}

    Source: Raffel et al., Exploring the Limits of Transfer Learning, section 3.1.4, for sentinels.
    Differs: words, not tokens, and the targets of a pair do not restore them.
    """

    mean_words: float = 3.0
    mask: str = "<extra_id_{n}>"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mean_words >= 1:
            raise field_error(self, "mean_words", "at least 1")
        if self.mask.split() != ([self.mask] if self.mask else []):
            raise field_error(self, "mask", "without spaces")

    def augment(self, record: Record, rng: np.random.Generator, vocabulary: Vocabulary) -> Record:
        if self.mask and next(self._masks("", vocabulary), None) is None:
            remedy = "name a sentinel or an added token, or '' to remove spans"
            raise field_error(self, "mask", "a special piece of the vocabulary", remedy)
        return super().augment(record, rng, vocabulary)

    def _change(self, words: _Words, rng: np.random.Generator, vocabulary: Vocabulary) -> None:
        masks = self._masks(words.text, vocabulary)
        count = len(words.free)
        num_noise = min(max(1, round(self.fraction * count)), count - 1)
        if num_noise < 1:
            return
        num_spans = min(max(1, round(num_noise / self.mean_words)), count - num_noise)
        lengths = _parts(rng, num_noise, num_spans)
        # Spans have at least one word between them, and any number before and after them.
        gaps = _parts(rng, count - num_noise + 2, num_spans + 1)
        gaps[0] -= 1
        at = 0
        for gap, length in zip(gaps, lengths, strict=False):
            at += gap
            mask = next(masks, None)
            if mask is None:
                break
            # Removed words may have a word with a special piece between them, which stays.
            for number in words.free[at : at + length]:
                words.replace(number, mask)
                mask = ""
            at += length

    def _masks(self, text: str, vocabulary: Vocabulary) -> Iterator[str]:
        """Yields the masks of a text, as long as the vocabulary has further ones."""
        for number in itertools.count():
            mask = self.mask.replace("{n}", str(number))
            if mask and not _is_special(mask, vocabulary):
                return
            if "{n}" not in self.mask or mask not in text:
                yield mask


def _is_special(text: str, vocabulary: Vocabulary) -> bool:
    kept = vocabulary.kept_texts
    is_one = kept is not None and kept.fullmatch(text) is not None
    return is_one and vocabulary.missing_sentinel(text) is None


def _parts(rng: np.random.Generator, total: int, count: int) -> list[int]:
    """Returns `count` numbers of at least 1 with a sum of `total`, uniform among all of them."""
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    return [int(n) for n in np.diff([0, *cuts, total])]


def augmented(
    augmentations: Sequence[Augmentation],
    record: Record,
    number: int,
    rng: np.random.Generator,
    vocabulary: Vocabulary,
) -> Record:
    """Returns the record after all augmentations.

    Args:
        number: of the record, for errors.

    Raises:
        UserError: if one of the user's own augmentations fails, or returns no record.
    """
    for augmentation in augmentations:
        name = type(augmentation).__name__
        try:
            record = augmentation.augment(record, rng, vocabulary)
        except UserError:
            raise
        # The user's own class may raise anything.
        except Exception as error:
            raise UserError(
                f"Task.augmentations: {name} failed on record {number}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(record, dict):
            raise UserError(
                f"Task.augmentations: {name} must return the fields of a record, got "
                f"{type(record).__name__}"
            )
        record = {field: as_field(value) for field, value in record.items()}
    return record


def augmentation_version(augmentation: Augmentation) -> str:
    """Returns a text that changes with what an augmentation does."""
    kind = type(augmentation)
    if kind.__module__.startswith("t5lite."):
        return repr(augmentation)
    try:
        source = hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()[:8]
    except (OSError, TypeError):
        source = kind.__qualname__
    return f"{augmentation!r}#{source}"

"""Reading the examples of a task one after another, from any position."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import (
    Denoiser,
    Example,
    PairObjective,
    TextObjective,
    Tokens,
    examples_of_pair,
)
from t5lite.data.task import Task
from t5lite.data.tokens import TokenRecords

_NO_TOKENS = np.zeros(0, np.int32)


class TextPosition(NamedTuple):
    """A position in the text of a row: `offset` tokens into its `document`-th record."""

    document: int = 0
    offset: int = 0


class ExampleReader:
    """Makes the examples of a task, in the order of its records.

    Args:
        records: from `Task.tokens`.
        read: returns the texts of a document by its number in reading order; None after the last.
    """

    def __init__(
        self,
        task: Task,
        records: TokenRecords,
        read: Callable[[int], tuple[Tokens, ...] | None],
    ) -> None:
        self._task = task
        self._records = records
        self._read = read
        # Of the records that are read, in tokens.
        self._max_length: int | None = None
        # Testing a protocol costs as much as making an example.
        self._takes_pairs = task.takes_pairs
        self._makes_several = hasattr(task.objective, "examples_of_pair")
        self._made: tuple[int, list[Example]] = (-1, [])
        self._latest: tuple[int, tuple[Tokens, ...] | None] = (-1, None)

    def read(
        self, position: TextPosition, rng: np.random.Generator, step: int | None = None
    ) -> tuple[Example, TextPosition] | None:
        """Returns the example at `position` and the position after it; None at the end.

        Args:
            step: of training, for the curriculum of the task; None in evaluation.

        Raises:
            UserError: if no record gives an example.
        """
        curriculum = self._task.curriculum
        self._max_length = None
        if curriculum is not None and step is not None:
            self._max_length = curriculum.max_length(step)
        if self._takes_pairs:
            return self._pair(position)
        vocabulary = self._task.vocabulary
        objective = cast(TextObjective, self._task.objective)
        denoiser = objective.choose(rng, vocabulary)
        make = self._joined if self._task.join_documents else self._piece
        found = make(position, denoiser)
        if found is None:
            return None
        tokens, weights, following = found
        example = denoiser(tokens, rng, vocabulary)
        if weights is not None:
            example["target_weights"] = _target_weights(example, weights)
        return example, following

    def _pair(self, position: TextPosition) -> tuple[Example, TextPosition] | None:
        # Of the examples of a document.
        offset = position.offset
        for document in self._documents(position.document):
            if (texts := self._texts(document)) is None:
                return None
            if self._is_read(texts):
                example, has_more = self._example(document, texts, offset)
                following = TextPosition(document, offset + 1)
                return example, following if has_more else TextPosition(document + 1)
            offset = 0
        raise AssertionError("documents never end")

    def _example(
        self, document: int, texts: tuple[Tokens, ...], offset: int
    ) -> tuple[Example, bool]:
        """Returns the example of a document at `offset`, and whether it has more."""
        objective = cast(PairObjective, self._task.objective)
        vocabulary = self._task.vocabulary
        if not self._makes_several:
            inputs, targets = texts[2 * offset : 2 * offset + 2]
            return objective.from_pair(inputs, targets, vocabulary), len(texts) > 2 * offset + 2
        if self._made[0] != document:
            pairs = zip(texts[::2], texts[1::2], strict=True)
            made = [e for pair in pairs for e in examples_of_pair(objective, *pair, vocabulary)]
            self._made = (document, made)
        examples = self._made[1]
        return examples[offset], len(examples) > offset + 1

    def _piece(
        self, position: TextPosition, denoiser: Denoiser
    ) -> tuple[Tokens, Tokens | None, TextPosition] | None:
        """Returns the tokens of one example, all from one record, and their weights."""
        ahead = denoiser.lookahead
        offset = position.offset
        for document in self._documents(position.document):
            if (texts := self._framed(document, ahead)) is None:
                return None
            text, *weights = texts
            # The stage of a curriculum may end in the middle of a record.
            if len(text) > offset + ahead and (
                offset or self._is_read(self._texts(document) or ())
            ):
                tokens = text[offset : offset + denoiser.tokens_length]
                end = offset + len(tokens) - ahead
                has_more = len(text) > end + ahead
                after = TextPosition(document, end) if has_more else TextPosition(document + 1)
                some = weights[0][offset : offset + len(tokens)] if weights else None
                return tokens, some, after
            offset = 0
        raise AssertionError("documents never end")

    def _joined(
        self, position: TextPosition, denoiser: Denoiser
    ) -> tuple[Tokens, Tokens | None, TextPosition] | None:
        """Returns the tokens of one example, from the concatenation of all records."""
        own, following = self._running(position, denoiser.tokens_length - denoiser.lookahead)
        ahead, _ = self._running(following, denoiser.lookahead)
        tokens = np.concatenate([own, ahead]) if len(ahead) else own
        return None if len(tokens) <= denoiser.lookahead else (tokens, None, following)

    def _running(self, position: TextPosition, count: int) -> tuple[Tokens, TextPosition]:
        """Returns the next `count` tokens, or fewer at the end, and the position after them."""
        document, offset = position
        pieces: list[Tokens] = []
        missing = count
        num_empty = 0
        while missing and (texts := self._texts(document)) is not None:
            text = texts[0] if texts else _NO_TOKENS
            piece = text[offset : offset + missing]
            pieces.append(piece)
            missing -= len(piece)
            offset += len(piece)
            num_empty = 0 if len(text) else num_empty + 1
            self._check_text(num_empty)
            if offset >= len(text):
                document += 1
                offset = 0
        if len(pieces) == 1:
            return pieces[0], TextPosition(document, offset)
        tokens = np.concatenate(pieces) if pieces else _NO_TOKENS
        return tokens, TextPosition(document, offset)

    def _framed(self, document: int, lookahead: int) -> tuple[Tokens, ...] | None:
        """Returns the text of a record, empty for a dropped record, and any weights of its tokens.

        If every token is predicted from the one before it, the text starts with the vocabulary's
        `document_start` and ends with an end of sequence.
        """
        texts = self._texts(document)
        if texts is None:
            return None
        if not texts:
            return (_NO_TOKENS,)
        text = texts[0]
        if not lookahead or not len(text):
            return texts
        vocabulary = self._task.vocabulary
        ends = ([vocabulary.document_start], [vocabulary.eos_id])
        framed = [np.concatenate([ends[0], text, ends[1]]).astype(np.int32)]
        for weights in texts[1:]:
            # The end of sequence counts as the last token of the text does.
            framed.append(np.concatenate([[0], weights, weights[-1:]]).astype(np.int32))
        return tuple(framed)

    def _is_read(self, texts: tuple[Tokens, ...]) -> bool:
        """Whether a record has texts that are not too long for the curriculum."""
        if not texts or self._max_length is None:
            return bool(texts)
        return _record_length(texts, self._takes_pairs) <= self._max_length

    def _documents(self, first: int) -> Iterator[int]:
        """Counts documents from `first`; fails if no record holds text."""
        for num_empty, document in enumerate(itertools.count(first)):
            self._check_text(num_empty)
            yield document

    def _texts(self, document: int) -> tuple[Tokens, ...] | None:
        if self._latest[0] != document:
            self._latest = (document, self._read(document))
        return self._latest[1]

    def _check_text(self, num_empty: int) -> None:
        """Checks all records once, after as many empty ones in a row as there are records.

        The row alone proves nothing: it reads only a share of the records.

        Raises:
            UserError: if no record holds text, or all are too long for the curriculum.
        """
        if num_empty <= len(self._records):
            return
        if self._shortest is None:
            raise UserError(
                f"task {self._task.name!r} gives no example: none of its {len(self._records):,} "
                "records holds a token; check its source, Task.preprocessors and templates"
            )
        if self._max_length is not None and self._shortest > self._max_length:
            raise UserError(
                f"LengthCurriculum.max_lengths must be at least the {self._shortest} tokens of the "
                f"shortest record of task {self._task.name!r}, got {self._max_length}"
            )

    @functools.cached_property
    def _shortest(self) -> int | None:
        """Tokens of the shortest record; None if none holds a token."""
        every = (self._records[number] for number in range(len(self._records)))
        return min(
            (_record_length(t, self._takes_pairs) for t in every if any(map(len, t))), default=None
        )


def _record_length(texts: tuple[Tokens, ...], takes_pairs: bool) -> int:
    """Returns the tokens of a record; of its longest pair if it gives several."""
    if not takes_pairs:
        return len(texts[0])
    return max(len(i) + len(t) for i, t in zip(texts[::2], texts[1::2], strict=True))


def _target_weights(example: Example, weights: Tokens) -> Tokens:
    """Returns the weights of targets that are the end of a text, or that and an end of sequence."""
    count = len(example["targets"])
    # Causal language modelling adds no end of sequence.
    if "decoder_inputs" in example:
        return weights[len(weights) - count :]
    return np.append(weights[len(weights) - count + 1 :], weights[-1:])

"""Reading the examples of a task one after another, from any position."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Denoiser, Example, PairObjective, TextObjective, Tokens
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
        order: maps the number of a document in reading order to a record number; None after the
            last document.
    """

    def __init__(
        self,
        task: Task,
        records: TokenRecords,
        order: Callable[[int], int | None],
    ) -> None:
        self._task = task
        self._records = records
        self._order = order
        # Testing a protocol costs as much as making an example.
        self._takes_pairs = task.takes_pairs
        self._latest: tuple[int, tuple[Tokens, ...] | None] = (-1, None)

    def read(
        self, position: TextPosition, rng: np.random.Generator
    ) -> tuple[Example, TextPosition] | None:
        """Returns the example at `position` and the position after it; None at the end.

        Raises:
            UserError: if no record gives an example.
        """
        if self._takes_pairs:
            return self._pair(position)
        vocabulary = self._task.vocabulary
        objective = cast(TextObjective, self._task.objective)
        denoiser = objective.choose(rng, vocabulary)
        if self._task.join_documents:
            found = self._joined(position, denoiser)
        else:
            found = self._piece(position, denoiser)
        return found and (denoiser(found[0], rng, vocabulary), found[1])

    def _pair(self, position: TextPosition) -> tuple[Example, TextPosition] | None:
        objective = cast(PairObjective, self._task.objective)
        for document in self._documents(position.document):
            if (texts := self._texts(document)) is None:
                return None
            if texts:
                example = objective.from_pair(texts[0], texts[1], self._task.vocabulary)
                return example, TextPosition(document + 1)
        raise AssertionError("documents never end")

    def _piece(
        self, position: TextPosition, denoiser: Denoiser
    ) -> tuple[Tokens, TextPosition] | None:
        """Returns the tokens of one example, all from one record."""
        ahead = denoiser.lookahead
        offset = position.offset
        for document in self._documents(position.document):
            if (text := self._framed(document, ahead)) is None:
                return None
            if len(text) > offset + ahead:
                tokens = text[offset : offset + denoiser.tokens_length]
                end = offset + len(tokens) - ahead
                has_more = len(text) > end + ahead
                after = TextPosition(document, end) if has_more else TextPosition(document + 1)
                return tokens, after
            offset = 0
        raise AssertionError("documents never end")

    def _joined(
        self, position: TextPosition, denoiser: Denoiser
    ) -> tuple[Tokens, TextPosition] | None:
        """Returns the tokens of one example, from the concatenation of all records."""
        own, following = self._running(position, denoiser.tokens_length - denoiser.lookahead)
        ahead, _ = self._running(following, denoiser.lookahead)
        tokens = np.concatenate([own, ahead]) if len(ahead) else own
        return None if len(tokens) <= denoiser.lookahead else (tokens, following)

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

    def _framed(self, document: int, lookahead: int) -> Tokens | None:
        """Returns the text of a record, empty if a preprocessor dropped the record.

        If every token is predicted from the one before it, the text starts with the vocabulary's
        `document_start` and ends with an end of sequence.
        """
        texts = self._texts(document)
        if texts is None:
            return None
        text = texts[0] if texts else _NO_TOKENS
        if not lookahead or not len(text):
            return text
        vocabulary = self._task.vocabulary
        framed = [[vocabulary.document_start], text, [vocabulary.eos_id]]
        return np.concatenate(framed).astype(np.int32)

    def _documents(self, first: int) -> Iterator[int]:
        """Counts documents from `first`; fails if no record holds text."""
        for num_empty, document in enumerate(itertools.count(first)):
            self._check_text(num_empty)
            yield document

    def _texts(self, document: int) -> tuple[Tokens, ...] | None:
        if self._latest[0] != document:
            number = self._order(document)
            self._latest = (document, None if number is None else self._records[number])
        return self._latest[1]

    def _check_text(self, num_empty: int) -> None:
        """Checks all records once, after as many empty ones in a row as there are records.

        The row alone proves nothing: it reads only a share of the records.

        Raises:
            UserError: if no record holds text.
        """
        if num_empty > len(self._records) and not self._has_text:
            raise UserError(
                f"task {self._task.name!r} gives no example: none of its {len(self._records):,} "
                "records holds a token; check its source, Task.preprocessors and templates"
            )

    @functools.cached_property
    def _has_text(self) -> bool:
        return any(any(map(len, self._records[number])) for number in range(len(self._records)))

"""From token ids to examples, one after another, from any place on."""

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


class Place(NamedTuple):
    """Where a reader stands: `offset` tokens into its `document`-th record."""

    document: int = 0
    offset: int = 0


class Reader:
    """Makes the examples of a task, in the order of the records.

    Args:
        records: as `Task.tokens` has them.
        order: from the number of a record in the order of reading to its own; None behind the last.
    """

    def __init__(
        self,
        task: Task,
        records: TokenRecords,
        order: Callable[[int], int | None],
    ) -> None:
        self._task, self._records, self._order = task, records, order
        # Asking a protocol costs as much as making an example.
        self._takes_pairs = task.takes_pairs
        self._latest: tuple[int, tuple[Tokens, ...] | None] = (-1, None)

    def read(self, place: Place, rng: np.random.Generator) -> tuple[Example, Place] | None:
        """Returns the example at `place`, and the place behind it; None at the end.

        Raises:
            UserError: where no record gives an example.
        """
        if self._takes_pairs:
            return self._pair(place)
        vocabulary = self._task.vocabulary
        objective = cast(TextObjective, self._task.objective)
        denoiser = objective.choose(rng, vocabulary)
        joined = self._task.join_documents
        found = self._joined(place, denoiser) if joined else self._piece(place, denoiser)
        return found and (denoiser(found[0], rng, vocabulary), found[1])

    def _pair(self, place: Place) -> tuple[Example, Place] | None:
        objective = cast(PairObjective, self._task.objective)
        for document in self._from(place.document):
            if (texts := self._texts(document)) is None:
                return None
            if texts:
                example = objective.from_pair(texts[0], texts[1], self._task.vocabulary)
                return example, Place(document + 1)
        raise AssertionError("records go on without end")

    def _piece(self, place: Place, denoiser: Denoiser) -> tuple[Tokens, Place] | None:
        """Returns what the denoiser takes of one record, from `place` on."""
        ahead, offset = denoiser.lookahead, place.offset
        for document in self._from(place.document):
            if (text := self._framed(document, ahead)) is None:
                return None
            if len(text) > offset + ahead:
                tokens = text[offset : offset + denoiser.tokens_length]
                end = offset + len(tokens) - ahead
                more = len(text) > end + ahead
                return tokens, Place(document, end) if more else Place(document + 1)
            offset = 0
        raise AssertionError("records go on without end")

    def _joined(self, place: Place, denoiser: Denoiser) -> tuple[Tokens, Place] | None:
        """Returns what the denoiser takes of the running text, from `place` on."""
        own, following = self._running(place, denoiser.tokens_length - denoiser.lookahead)
        ahead, _ = self._running(following, denoiser.lookahead)
        tokens = np.concatenate([own, ahead]) if len(ahead) else own
        return None if len(tokens) <= denoiser.lookahead else (tokens, following)

    def _running(self, place: Place, count: int) -> tuple[Tokens, Place]:
        """Returns the next `count` tokens, fewer at the end of the text, and where they end."""
        document, offset = place
        pieces: list[Tokens] = []
        missing, without = count, 0
        while missing and (texts := self._texts(document)) is not None:
            text = texts[0] if texts else _NO_TOKENS
            piece = text[offset : offset + missing]
            pieces.append(piece)
            missing -= len(piece)
            offset += len(piece)
            without = 0 if len(text) else without + 1
            self._check_text(without)
            if offset >= len(text):
                document, offset = document + 1, 0
        if len(pieces) == 1:
            return pieces[0], Place(document, offset)
        tokens = np.concatenate(pieces) if pieces else _NO_TOKENS
        return tokens, Place(document, offset)

    def _framed(self, document: int, lookahead: int) -> Tokens | None:
        """Returns the text of a record, none if it was left out.

        Where each token is predicted from the one before it, a 0 stands first and an end last.
        """
        texts = self._texts(document)
        if texts is None:
            return None
        text = texts[0] if texts else _NO_TOKENS
        if not lookahead or not len(text):
            return text
        return np.concatenate([[0], text, [self._task.vocabulary.eos_id]]).astype(np.int32)

    def _from(self, document: int) -> Iterator[int]:
        """Counts on from a record, as long as there is text in any of them."""
        for without, number in enumerate(itertools.count(document)):
            self._check_text(without)
            yield number

    def _texts(self, document: int) -> tuple[Tokens, ...] | None:
        if self._latest[0] != document:
            number = self._order(document)
            self._latest = (document, None if number is None else self._records[number])
        return self._latest[1]

    def _check_text(self, without: int) -> None:
        """Looks at all records once so many in a row gave nothing; a row may miss the few that do.

        Raises:
            UserError: where none does.
        """
        if without > len(self._records) and not self._has_text:
            raise UserError(
                f"task {self._task.name!r} gives no example: none of its {len(self._records):,} "
                "records holds a token; look at its source, Task.preprocessors and templates"
            )

    @functools.cached_property
    def _has_text(self) -> bool:
        return any(any(map(len, self._records[number])) for number in range(len(self._records)))

"""Batches as a pure function of (seed, step): each row of the global batch is its own stream.

Row r of a batch of B rows reads the documents r, r + B, r + 2B, ... of the shuffled, repeated
order. Where a row stands is its cursor, three integers, and every row carries the cursor that
follows it: what is saved with step s is enough to make row r of step s + 1, in whatever process
reads that row, and however far ahead others were read.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from jaxtyping import Int

from t5lite.core.errors import UserError
from t5lite.data.features import Row, empty_row, row_from_example
from t5lite.data.sources import Documents
from t5lite.data.task import Task

Cursors = Int[np.ndarray, "rows 3"]

# Batches made ahead by a thread while the step runs.
PREFETCH_BATCHES = 2

# Evaluation corrupts the same text in the same way at every call, whatever the seed of training.
EVAL_ENTROPY = 0


@dataclasses.dataclass(frozen=True)
class Cursor:
    """Where a stream of text stands: `offset` tokens into its `document`-th document."""

    document: int = 0
    offset: int = 0
    example: int = 0


class Reader:
    """Reads tokens across documents; `tokens_of(n)` is None behind the last one."""

    def __init__(self, tokens_of: Callable[[int], np.ndarray | None], num_documents: int) -> None:
        self._tokens_of = tokens_of
        self._num_documents = num_documents
        self._cached: tuple[int, np.ndarray | None] = (-1, None)

    def read(self, cursor: Cursor, count: int) -> tuple[np.ndarray, Cursor]:
        """Returns the next `count` tokens, fewer at the end of the text, and where they end."""
        pieces, document, offset, missing, empty = [], cursor.document, cursor.offset, count, 0
        while missing and (tokens := self._document(document)) is not None:
            piece = tokens[offset : offset + missing]
            pieces.append(piece)
            missing -= len(piece)
            offset += len(piece)
            empty = 0 if len(tokens) else empty + 1
            if empty > self._num_documents:
                raise UserError("the corpus is empty: none of its documents holds a token")
            if offset >= len(tokens):
                document, offset = document + 1, 0
        text = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        return text, Cursor(document, offset, cursor.example)

    def _document(self, number: int) -> np.ndarray | None:
        if self._cached[0] != number:
            self._cached = (number, self._tokens_of(number))
        return self._cached[1]


def _examples(
    task: Task, reader: Reader, cursor: Cursor, entropy: tuple[int, ...]
) -> Iterator[tuple[Row, Cursor]]:
    """Yields row after row with the cursor that follows it, until the text ends."""
    objective = task.objective
    own = objective.tokens_length - objective.lookahead
    while True:
        tokens, following = reader.read(cursor, own)
        ahead, _ = reader.read(following, objective.lookahead)
        tokens = np.concatenate([tokens, ahead])
        if len(tokens) <= objective.lookahead:
            return
        rng = np.random.default_rng((*entropy, cursor.example))
        example = objective(tokens, rng, task.vocabulary)
        cursor = dataclasses.replace(following, example=cursor.example + 1)
        yield (
            row_from_example(
                example,
                inputs_length=objective.inputs_length,
                targets_length=objective.targets_length,
            ),
            cursor,
        )


class _Rows(grain.DatasetIterator):
    """The rows of the global batch that this process reads, one batch after another."""

    def __init__(
        self,
        task: Task,
        documents: Documents,
        *,
        rows: Sequence[int],
        batch_size: int,
        seed: int,
        cursors: Cursors,
    ) -> None:
        super().__init__()
        # Grain gives epoch e the order of seed + e: neighbouring seeds would share their orders.
        scattered = int(np.random.SeedSequence(seed).generate_state(1)[0])
        shuffled = grain.MapDataset.source(documents).shuffle(seed=scattered).repeat()

        def stream(row: int, cursor: Cursor) -> Iterator[tuple[Row, Cursor]]:
            reader = Reader(
                lambda number: task.vocabulary.encode(shuffled[row + number * batch_size]),
                len(documents),
            )
            return _examples(task, reader, cursor, (seed, row))

        starts = [Cursor(*map(int, cursor)) for cursor in cursors]
        self._streams = [stream(row, start) for row, start in zip(rows, starts, strict=True)]

    def __next__(self) -> dict[str, np.ndarray]:
        made = [next(stream) for stream in self._streams]
        batch = _stack([row for row, _ in made])
        cursors = [dataclasses.astuple(cursor) for _, cursor in made]
        return {**batch, "cursors": np.asarray(cursors, np.int32)}

    # The cursors in the batches are the state; Grain's own would count batches read ahead.
    def get_state(self) -> dict[str, int]:
        return {}

    def set_state(self, state: dict[str, int]) -> None:
        del state


@dataclasses.dataclass(frozen=True)
class _Batches(grain.IterDataset):
    make: Callable[[], grain.DatasetIterator]

    def __iter__(self) -> grain.DatasetIterator:
        return self.make()


def train_batches(
    task: Task,
    split: str,
    *,
    rows: Sequence[int],
    batch_size: int,
    seed: int,
    cursors: Cursors | None = None,
) -> grain.DatasetIterator:
    """Yields this process's rows of every batch, without end, made ahead in a thread.

    Args:
        rows: which rows of the global batch, of `batch_size`, this process reads.
        seed: decides the order of documents and what is random in the objective.
        cursors: those of a checkpoint, one for each of `rows`; None for the first batch.

    Returns:
        Batches as in `data.features`, with `cursors`: where each row stands after the batch.

    Raises:
        UserError: where the corpus is empty.
    """
    if cursors is None:
        cursors = np.zeros((len(rows), 3), np.int32)
    documents = task.source.documents(split)
    batches = _Batches(
        lambda: _Rows(task, documents, rows=rows, batch_size=batch_size, seed=seed, cursors=cursors)
    )
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=PREFETCH_BATCHES)
    )


def eval_batches(
    task: Task, split: str, *, rows: Sequence[int], batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's rows of one pass over a split, in order, the same at every call.

    No text is left out and none comes twice: the last example is as long as what is left, and
    the last batch is filled up with rows of padding, which count for nothing.
    """
    documents = task.source.documents(split)

    def tokens_of(number: int) -> np.ndarray | None:
        return task.vocabulary.encode(documents[number]) if number < len(documents) else None

    reader = Reader(tokens_of, len(documents))
    examples = _examples(task, reader, Cursor(), (EVAL_ENTROPY,))
    padding = empty_row(
        inputs_length=task.objective.inputs_length, targets_length=task.objective.targets_length
    )
    while batch := [row for row, _ in itertools.islice(examples, batch_size)]:
        batch += [padding] * (batch_size - len(batch))
        yield _stack([batch[row] for row in rows])


def _stack(rows: list[Row]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

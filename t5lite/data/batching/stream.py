"""Batches as a pure function of (seed, step): each row of the global batch is its own stream.

Row r of a batch of B rows reads, of every task, the records r, r + B, r + 2B, ... of the shuffled,
repeated order. Example e of the row is decided by (seed, r, e): its task, and all that is random
in it. Where a row stands is its cursor, a few numbers, and every batch carries the cursors that
follow it: what is saved with step s is enough to make row r of step s + 1, in whatever process
reads that row, and however far ahead others were read.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from t5lite.core.examples import Example
from t5lite.data.batching.features import Features, Layout, batch_of
from t5lite.data.batching.readers import Place, Reader
from t5lite.data.batching.row_stream import Cursor, MakeExample, RowStream, first_cursor
from t5lite.data.mixture import Mixture
from t5lite.data.task import Task

# Batches made ahead while the step runs.
PREFETCH_BATCHES = 2

# Of what the same seed gives; a change makes cursors of before worthless.
STREAM_VERSION = 1

# Evaluation corrupts the same text in the same way at every call, whatever the seed of training.
EVAL_ENTROPY = 0


@dataclasses.dataclass(frozen=True)
class Cursors:
    """Of the rows of a batch, in their order. One object to whoever walks over a batch."""

    rows: tuple[Cursor, ...]


def _row_examples(
    tasks: Sequence[Task],
    rates: Sequence[float],
    tokens: Sequence[Any],
    *,
    row: int,
    batch_size: int,
    seed: int,
) -> MakeExample:
    """Returns what makes the examples of one row."""

    def reader(number: int) -> Reader:
        records = tokens[number]
        order = _order(len(records), (seed, number))
        return Reader(tasks[number], records, lambda document: order(row + document * batch_size))

    readers = [reader(number) for number in range(len(tasks))]
    bounds = np.cumsum(rates)
    # One generator, set to a place of its own for each example: far cheaper than one for each.
    key = np.random.SeedSequence((seed, row)).generate_state(2, np.uint64)
    bits = np.random.Philox(key=key)
    rng, state = np.random.Generator(bits), bits.state

    def make(number: int, places: tuple[Place, ...]) -> tuple[Example, tuple[Place, ...]]:
        state["state"]["counter"][:] = (0, 0, number, 0)
        bits.state = state
        index = 0
        if len(tasks) > 1:
            index = int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))
        found = readers[index].read(places[index], rng)
        assert found is not None, "the records are repeated without end"
        example, place = found
        return example, (*places[:index], place, *places[index + 1 :])

    return make


def _order(num_records: int, entropy: tuple[int, ...]) -> Callable[[int], int]:
    """Returns the shuffled, repeated order of records; every epoch holds each of them once."""

    @functools.lru_cache(maxsize=4)
    def epoch_seed(epoch: int) -> int:
        return int(np.random.SeedSequence((*entropy, epoch)).generate_state(1)[0])

    def record(position: int) -> int:
        epoch, index = divmod(position, num_records)
        return int(
            grain.experimental.index_shuffle(
                index, max_index=num_records - 1, seed=epoch_seed(epoch), rounds=4
            )
        )

    return record


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What Grain sends to its workers: see `Batches`."""

    task: Task | Mixture
    split: str
    layout: Layout
    rows: Sequence[int]
    batch_size: int
    seed: int
    packed: bool
    cursors: Sequence[Cursor]


class _RowsIterator(grain.DatasetIterator):
    """Some rows of one batch after another."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        tasks, split = plan.task.tasks, plan.split
        rates, tokens = plan.task.rates(split), [task.tokens(split) for task in tasks]
        self._layout = plan.layout

        def stream(row: int, cursor: Cursor) -> RowStream:
            make = _row_examples(
                tasks, rates, tokens, row=row, batch_size=plan.batch_size, seed=plan.seed
            )
            return RowStream(make, plan.layout, cursor, packed=plan.packed)

        starts = zip(plan.rows, plan.cursors, strict=True)
        self._streams = [stream(row, cursor) for row, cursor in starts]

    def __next__(self) -> dict[str, Any]:
        batch = batch_of(self._layout, [next(stream) for stream in self._streams])
        return {**batch, "cursors": Cursors(tuple(stream.cursor for stream in self._streams))}

    # The cursors in the batches are the state; Grain's own would count batches read ahead.
    def get_state(self) -> dict[str, int]:
        return {}

    def set_state(self, state: dict[str, int]) -> None:
        del state


class _Rows(grain.IterDataset):
    """The same as Grain takes it, to be iterated over in a thread or process of its own."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self._plan = plan

    def __iter__(self) -> grain.DatasetIterator:
        return _RowsIterator(self._plan)


class Batches:
    """This process's rows of every batch, without end, made ahead. Close it to end its workers.

    Iterating gives (batch, cursors): features as in `data.features`, and where each of the rows
    stands after the batch.

    Args:
        rows: which rows of the global batch, of `batch_size`, this process reads.
        seed: decides the order of records, the tasks of examples, and what is random in them.
        packed: several examples share a row.
        cursors: those of a checkpoint, one for each of `rows`; None for the first batch.
        workers: processes that make rows; 0 for a thread of this one.

    Raises:
        UserError: where a source is not there or holds nothing.
    """

    def __init__(
        self,
        task: Task | Mixture,
        split: str,
        layout: Layout,
        *,
        rows: Sequence[int],
        batch_size: int,
        seed: int,
        packed: bool = False,
        cursors: Sequence[Cursor] | None = None,
        workers: int = 0,
    ) -> None:
        if cursors is None:
            cursors = [first_cursor(len(task.tasks))] * len(rows)
        # Made ready here, so that what is wrong is said by this process.
        for part in task.tasks:
            part.tokens(split)
        plan = _Plan(task, split, layout, tuple(rows), batch_size, seed, packed, tuple(cursors))
        self._iterators = (
            _in_processes(plan, min(workers, len(rows))) if workers else [_in_thread(plan)]
        )

    def __iter__(self) -> Iterator[tuple[Features, list[Cursor]]]:
        return self

    def __next__(self) -> tuple[Features, list[Cursor]]:
        parts = [dict(next(iterator)) for iterator in self._iterators]
        cursors = [part.pop("cursors").rows for part in parts]
        features = {name: _interleave([part[name] for part in parts]) for name in parts[0]}
        return features, [c for c in itertools.chain(*itertools.zip_longest(*cursors)) if c]

    def close(self) -> None:
        """Ends threads and processes."""
        for iterator in self._iterators:
            iterator.close()
        # Else Grain closes them again while the interpreter shuts down, and fails.
        self._iterators = []


def _in_thread(plan: _Plan) -> grain.DatasetIterator:
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(
            _Rows(plan), prefetch_buffer_size=PREFETCH_BATCHES
        )
    )


def _in_processes(plan: _Plan, workers: int) -> list[grain.DatasetIterator]:
    """Starts `workers` processes, each of which makes every `workers`-th of the rows."""
    # Grain reads absl's global flags, for which t5lite has no use, before it starts a process.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    parts = [
        dataclasses.replace(plan, rows=plan.rows[n::workers], cursors=plan.cursors[n::workers])
        for n in range(workers)
    ]
    options = grain.MultiprocessingOptions(1, PREFETCH_BATCHES)
    iterators = [iter(_Rows(part).mp_prefetch(options)) for part in parts]
    for iterator in iterators:
        iterator.start_prefetch()
    return iterators


def _interleave(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Puts row i of worker w into row i * workers + w."""
    if len(parts) == 1 and type(parts[0]) is np.ndarray:
        return parts[0]
    # What comes from a process lies in memory that is shared with it; a copy sets that free.
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for worker, part in enumerate(parts):
        whole[worker :: len(parts)] = part
    return whole


def eval_examples(task: Task, split: str) -> Iterator[Example]:
    """Yields the examples of one pass over a split, in order, the same at every call.

    No text is left out and none comes twice: the last example is as long as what is left.
    """
    records = task.tokens(split)

    def order(document: int) -> int | None:
        return document if document < len(records) else None

    reader, place = Reader(task, records, order), Place()
    for number in itertools.count():
        found = reader.read(place, np.random.default_rng((EVAL_ENTROPY, number)))
        if found is None:
            return
        example, place = found
        yield example

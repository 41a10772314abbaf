"""Batches as a pure function of (seed, step): each row of the global batch is its own stream.

Row r of a batch of B rows reads the records r, r + B, r + 2B, ... of every task, in a shuffled
order that repeats. The task of example e of the row, and all randomness in it, depend on
(seed, r, e). The state of a row is its cursor, a few integers. Every batch carries the cursors
after it, so what is saved with step s determines row r of step s + 1, in any process and however
far others read ahead.
"""

import dataclasses
import itertools
import multiprocessing
import re
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from t5lite.core.errors import Unavailable
from t5lite.core.examples import Example, Tokens
from t5lite.core.import_path import safe_children
from t5lite.data.batching.features import TASK_ID, Features, Layout, batch_of
from t5lite.data.batching.order import Order
from t5lite.data.batching.readers import ExampleReader, TextPosition
from t5lite.data.batching.row_stream import Cursor, MakeExample, RowStream, first_cursor
from t5lite.data.batching.training_records import (
    Labels,
    training_labels,
    training_order,
    training_reader,
)
from t5lite.data.mixture import Mixture
from t5lite.data.task import Task
from t5lite.data.tokens import TokenRecords
from t5lite.data.unknown_pieces import warn_of_unknown_pieces

# Batches made ahead of the step.
PREFETCH_BATCHES = 2

# What Grain calls the processes that it starts.
_WORKER_NAME = "grain-process-prefetch"

# The version of the batches of a seed; cursors of another version are useless.
STREAM_VERSION = 1

# Evaluation corrupts text in the same way at every call, whatever the seed of the run.
EVAL_ENTROPY = 0


@dataclasses.dataclass(frozen=True)
class Cursors:
    """The cursors of a batch's rows, in order. A single leaf for code that maps over a batch."""

    rows: tuple[Cursor, ...]


def _row_examples(
    tasks: Sequence[Task],
    rates: Sequence[float],
    tokens: Sequence[TokenRecords],
    orders: Sequence[Order],
    *,
    row: int,
    batch_size: int,
    seed: int,
) -> MakeExample:
    """Returns the function that makes the examples of one row."""

    def reader(number: int) -> ExampleReader:
        read = training_reader(tokens[number], orders[number], (seed, number))
        return ExampleReader(
            tasks[number], tokens[number], lambda document: read(row + document * batch_size)
        )

    readers = [reader(number) for number in range(len(tasks))]
    bounds = np.cumsum(rates)
    task_ids = [np.array([1 + number], np.int32) for number in range(len(tasks))]
    # One generator whose counter is set for each example: far cheaper than one per example.
    key = np.random.SeedSequence((seed, row)).generate_state(2, np.uint64)
    bits = np.random.Philox(key=key)
    rng = np.random.Generator(bits)
    state = bits.state

    def make(
        number: int, positions: tuple[TextPosition, ...]
    ) -> tuple[Example, tuple[TextPosition, ...]]:
        state["state"]["counter"][:] = (0, 0, number, 0)
        bits.state = state
        index = 0
        if len(tasks) > 1:
            index = int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))
        found = readers[index].read(positions[index], rng, number)
        assert found is not None, "the records repeat"
        example, position = found
        if len(tasks) > 1:
            example = {**example, TASK_ID: task_ids[index]}
        return example, (*positions[:index], position, *positions[index + 1 :])

    return make


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The arguments of `Batches`, as Grain sends them to its workers."""

    task: Task | Mixture
    split: str
    layout: Layout
    rows: Sequence[int]
    batch_size: int
    seed: int
    packed: bool
    cursors: Sequence[Cursor]
    labels: Sequence[Labels | None]


class _RowsIterator(grain.DatasetIterator):
    """Some rows of every batch."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        tasks = plan.task.tasks
        rates = plan.task.rates(plan.split)
        tokens = [task.tokens(plan.split) for task in tasks]
        orders = [
            training_order(task, tokens[number], plan.labels[number], (plan.seed, number))
            for number, task in enumerate(tasks)
        ]
        self._layout = plan.layout

        def stream(row: int, cursor: Cursor) -> RowStream:
            make = _row_examples(
                tasks, rates, tokens, orders, row=row, batch_size=plan.batch_size, seed=plan.seed
            )
            return RowStream(make, plan.layout, cursor, packed=plan.packed)

        starts = zip(plan.rows, plan.cursors, strict=True)
        self._streams = [stream(row, cursor) for row, cursor in starts]

    def __next__(self) -> dict[str, Any]:
        batch = batch_of(self._layout, [next(stream) for stream in self._streams])
        return {**batch, "cursors": Cursors(tuple(stream.cursor for stream in self._streams))}

    # The cursors in the batches are the state; Grain's state would count batches read ahead.
    def get_state(self) -> dict[str, int]:
        return {}

    def set_state(self, state: dict[str, int]) -> None:
        del state


class _Rows(grain.IterDataset):
    """The same as a Grain data set, which a thread or process iterates over."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self._plan = plan

    def __iter__(self) -> grain.DatasetIterator:
        return _RowsIterator(self._plan)


class Batches:
    """An endless iterator over this process's rows of every batch, made ahead. Close it after use.

    Iterating gives (batch, cursors): features as in `batching.features`, and the cursor of each row
    after the batch.

    Args:
        rows: the rows of the global batch, of size `batch_size`, that this process reads.
        seed: of the order of records, the tasks of examples, and their randomness.
        packed: whether several examples share a row.
        cursors: from a checkpoint, one for each of `rows`; None for the first batch.
        workers: processes that make rows; 0 for a thread.

    Raises:
        UserError: if a source is missing or empty.
        Unavailable: while iterating, if a worker's process dies.
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
        # Built here, so that this process reports errors.
        labels = [training_labels(part, split) for part in task.tasks]
        for part in task.tasks if 0 in rows else ():
            warn_of_unknown_pieces(part, split)
        plan = _Plan(
            task, split, layout, tuple(rows), batch_size, seed, packed, tuple(cursors), labels
        )
        if workers:
            self._iterators = _in_processes(plan, min(workers, len(rows)))
        else:
            self._iterators = [_in_thread(plan)]

    def __iter__(self) -> Iterator[tuple[Features, list[Cursor]]]:
        return self

    def __next__(self) -> tuple[Features, list[Cursor]]:
        parts = [_next_part(iterator) for iterator in self._iterators]
        cursors = [part.pop("cursors").rows for part in parts]
        features = {name: _interleave([part[name] for part in parts]) for name in parts[0]}
        return features, [c for c in itertools.chain(*itertools.zip_longest(*cursors)) if c]

    def close(self) -> None:
        """Stops all threads and processes."""
        for iterator in self._iterators:
            iterator.close()
        # Otherwise Grain closes them again at interpreter shutdown, and fails.
        self._iterators = []


def _in_thread(plan: _Plan) -> grain.DatasetIterator:
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(
            _Rows(plan), prefetch_buffer_size=PREFETCH_BATCHES
        )
    )


def _in_processes(plan: _Plan, workers: int) -> list[grain.DatasetIterator]:
    """Starts `workers` processes, each for every `workers`-th row."""
    # Grain reads absl's global flags, which t5lite does not use, before it starts a process.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    parts = [
        dataclasses.replace(plan, rows=plan.rows[n::workers], cursors=plan.cursors[n::workers])
        for n in range(workers)
    ]
    options = grain.MultiprocessingOptions(1, PREFETCH_BATCHES)
    iterators = [iter(_Rows(part).mp_prefetch(options)) for part in parts]
    with safe_children():
        for iterator in iterators:
            iterator.start_prefetch()
    return iterators


def _next_part(iterator: grain.DatasetIterator) -> dict[str, Any]:
    """Returns the rows of a worker.

    Raises:
        Unavailable: if its process died.
    """
    try:
        return dict(next(iterator))
    except RuntimeError as error:
        # How Grain reports it; errors of the worker itself keep their own types.
        died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if died is None:
            raise
        raise lost_worker(int(died[1])) from error


def lost_worker(status: int) -> Unavailable:
    """Returns the error of a data worker that died with an exit status."""
    reason = "was killed, perhaps for memory" if status == -9 else "died"
    return Unavailable(
        f"a data worker {reason} (exit status {status}); restart to resume from the latest "
        "checkpoint, with fewer train.data_workers if memory is short"
    )


def running_workers() -> list[Any]:
    """Returns the processes of this process that make rows."""
    children = multiprocessing.active_children()
    return [child for child in children if child.name.startswith(_WORKER_NAME)]


def _interleave(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Moves row i of worker w to row i * workers + w."""
    if len(parts) == 1 and type(parts[0]) is np.ndarray:
        return parts[0]
    # Arrays from another process are in shared memory, which a copy releases.
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for worker, part in enumerate(parts):
        whole[worker :: len(parts)] = part
    return whole


def eval_examples(task: Task, split: str) -> Iterator[Example]:
    """Yields the examples of one pass over a split, in order and the same at every call.

    Every token of the text is in exactly one example; the last one may be shorter.
    """
    records = task.tokens(split)

    def read(document: int) -> tuple[Tokens, ...] | None:
        return records[document] if document < len(records) else None

    reader = ExampleReader(task, records, read)
    position = TextPosition()
    for number in itertools.count():
        found = reader.read(position, np.random.default_rng((EVAL_ENTROPY, number)))
        if found is None:
            return
        example, position = found
        yield example

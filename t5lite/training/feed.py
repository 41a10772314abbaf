"""The batches of a run from the position that a checkpoint saved, and the position to save next."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.core.errors import UserError
from t5lite.data.batching.features import Features
from t5lite.data.batching.row_stream import Cursor, first_cursor
from t5lite.data.batching.stream import STREAM_VERSION, Batches
from t5lite.parallel.sharding import batch_sharding, local_rows
from t5lite.training.program import TrainProgram
from t5lite.training.run import Run


class UsedBatch(NamedTuple):
    """The identity of a batch: its number, and the cursors of this process's rows before it."""

    number: int
    cursors: Sequence[Cursor]


class Feed:
    """Iterates over batches, of each the rows that this process needs. Close it.

    Args:
        rows: indices of the rows of the global batch that this process needs.
        saved: the result of `state` in the checkpoint that the run resumes from; None starts from
            the first batch.
        skip: more pairs as those of `train.skip_batches`.
        log: prints a line if the data restarts or batches are skipped.

    Raises:
        UserError: if the data differs from the data for which `saved` was made.
    """

    def __init__(
        self,
        run: Run,
        rows: Sequence[int],
        saved: dict[str, Any] | None,
        *,
        skip: Sequence[tuple[int, int]] = (),
        log: Callable[[str], None],
    ) -> None:
        seed = run.stream_seed
        self._about = _identity(run)
        self._rows = rows
        self._log = log
        own_skip = [tuple(pair) for pair in run.skip_batches]
        self._skip = [*own_skip, *skip]
        self._reasons = {
            **{last: "the run returned" for _, last in skip},
            **{last: "train.skip_batches" for _, last in own_skip},
        }
        if saved is not None and _restarts(run, saved):
            log(f"the data restarts with train.data_seed {seed}")
            saved = None
        cursors = [first_cursor(len(run.task.tasks))] * len(rows)
        if saved is not None:
            check_position(run, saved)
            cursors = [Cursor.from_json(saved["rows"][row]) for row in rows]
        self.number = 0 if saved is None else int(saved["batches"])
        known = [] if saved is None else [tuple(pair) for pair in saved["skip_batches"]]
        if late := [p for p in own_skip if p[0] <= self.number and p not in known]:
            log(
                f"batches up to {self.number} were used before {late} of train.skip_batches was "
                "set; only later batches of it are skipped"
            )
        self._cursors: Sequence[Cursor] = cursors
        self._used: list[UsedBatch] = []
        self._batches = Batches(
            run.task,
            run.train_split,
            run.layout,
            rows=rows,
            batch_size=run.batch_size,
            seed=seed,
            packed=run.packed,
            cursors=cursors,
            workers=run.data_workers,
        )

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> Features:
        while True:
            before = self._cursors
            features, self._cursors = next(self._batches)
            self.number += 1
            if not any(first <= self.number <= last for first, last in self._skip):
                self._used.append(UsedBatch(self.number, before))
                return features
            if reason := self._reasons.get(self.number):
                self._log(f"skipped the batches up to {self.number}: {reason}")

    def take_used(self) -> list[UsedBatch]:
        """Returns the batches since the last call."""
        used = self._used
        self._used = []
        return used

    def state(self) -> dict[str, Any]:
        """Returns the position after the latest batch as JSON data, the same in all processes.

        `about` describes the data, `batches` counts used and skipped batches, `rows` has the cursor
        of each row of the global batch. All processes must call it together.
        """
        return {
            "about": self._about,
            "batches": self.number,
            "skip_batches": self._skip,
            "rows": self.rows_of(UsedBatch(self.number, self._cursors)),
        }

    def rows_of(self, batch: UsedBatch) -> list[Any]:
        """Returns the cursors of all rows of the global batch as JSON data.

        All processes must call it together.
        """
        cursors = {row: c.to_json() for row, c in zip(self._rows, batch.cursors, strict=True)}
        rows: dict[int, Any] = {}
        for part in _of_all_processes(cursors):
            rows |= {int(row): cursor for row, cursor in part.items()}
        return [rows[row] for row in sorted(rows)]

    def close(self) -> None:
        """Stops the workers that prepare batches."""
        self._batches.close()


def open_feed(
    program: TrainProgram,
    saved: dict[str, Any] | None,
    *,
    skip: Sequence[tuple[int, int]] = (),
    log: Callable[[str], None],
) -> Feed:
    """Returns the batches of a run for this process, after those of a checkpoint.

    Args:
        saved: the position in the data that the checkpoint holds; None for the beginning.
        skip: more pairs as those of `train.skip_batches`.
        log: prints one line.

    Raises:
        UserError: if the data differs from that of the checkpoint.
    """
    run = program.run
    rows = local_rows(batch_sharding(program.mesh, run.batch_size), run.batch_size)
    return Feed(run, rows, saved, skip=skip, log=log)


def _of_all_processes(value: dict[int, Any]) -> list[dict[str, Any]]:
    """Returns the values of all processes after a round trip through JSON."""
    text = json.dumps(value).encode()
    if jax.process_count() == 1:
        return [json.loads(text)]
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(t[:n].tobytes()) for t, n in zip(texts, lengths, strict=True)]


def _identity(run: Run) -> dict[str, Any]:
    """Returns what the batches of a run depend on."""
    return {
        "stream_version": STREAM_VERSION,
        "data_seed": run.stream_seed,
        "batch_size": run.batch_size,
        "packed": run.packed,
        "layout": repr(run.layout),
        **run.task.identity(run.train_split),
    }


def _restarts(run: Run, position: dict[str, Any]) -> bool:
    """Whether the data of a run begins again, although a position in it was saved."""
    return run.data_seed is not None and position["about"]["data_seed"] != run.stream_seed


def check_position(run: Run, position: dict[str, Any]) -> None:
    """Raises a UserError if the data of a run differs from that of a saved position."""
    if _restarts(run, position):
        return
    saved = position["about"]
    mine = _identity(run)
    for name in [*mine, *(saved.keys() - mine.keys())]:
        if saved.get(name) != mine.get(name):
            raise UserError(
                f"{run.model_dir} was trained with {name} {saved.get(name)}, got {mine.get(name)}: "
                "the saved position in the data would be wrong; use the former, another MODEL_DIR, "
                "or another train.data_seed, which restarts the data"
            )

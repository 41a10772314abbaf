"""The batches of a run from the position that a checkpoint saved, and the position to save next."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.core.errors import UserError
from t5lite.data.batching.features import Features
from t5lite.data.batching.row_stream import Cursor
from t5lite.data.batching.stream import STREAM_VERSION, Batches
from t5lite.parallel.sharding import batch_sharding, local_rows
from t5lite.training.program import TrainProgram
from t5lite.training.run import Run


class Feed:
    """Iterates over batches, of each the rows that this process needs. Close it.

    Args:
        rows: indices of the rows of the global batch that this process needs.
        saved: the result of `state` in the checkpoint that the run resumes from; None starts from
            the first batch.
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
        log: Callable[[str], None],
    ) -> None:
        seed = run.stream_seed
        self._about: dict[str, Any] = {
            "stream_version": STREAM_VERSION,
            "data_seed": seed,
            "batch_size": run.batch_size,
            "packed": run.packed,
            "layout": repr(run.layout),
            **run.task.identity(run.train_split),
        }
        self._rows = rows
        self._log = log
        self._skip = [tuple(pair) for pair in run.skip_batches]
        if saved is not None and saved["about"]["data_seed"] != seed and run.data_seed is not None:
            log(f"the data restarts with train.data_seed {seed}")
            saved = None
        cursors = None
        if saved is not None:
            _check_same(saved["about"], self._about, run.model_dir)
            cursors = [Cursor.from_json(saved["rows"][row]) for row in rows]
        self.number = 0 if saved is None else int(saved["batches"])
        known = [] if saved is None else [tuple(pair) for pair in saved["skip_batches"]]
        if late := [p for p in self._skip if p[0] <= self.number and p not in known]:
            log(
                f"batches up to {self.number} were used before {late} of train.skip_batches was "
                "set; only later batches of it are skipped"
            )
        self._cursors: Sequence[Cursor] | None = cursors
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
            features, self._cursors = next(self._batches)
            self.number += 1
            if not any(first <= self.number <= last for first, last in self._skip):
                return features
            if any(self.number == last for _, last in self._skip):
                self._log(f"skipped the batches up to {self.number}: train.skip_batches")

    def state(self) -> dict[str, Any]:
        """Returns the position after the latest batch as JSON data, the same in all processes.

        `about` describes the data, `batches` counts used and skipped batches, `rows` has the cursor
        of each row of the global batch. All processes must call it together.
        """
        assert self._cursors is not None
        cursors = {row: c.to_json() for row, c in zip(self._rows, self._cursors, strict=True)}
        rows: dict[int, Any] = {}
        for part in _of_all_processes(cursors):
            rows |= {int(row): cursor for row, cursor in part.items()}
        return {
            "about": self._about,
            "batches": self.number,
            "skip_batches": self._skip,
            "rows": [rows[row] for row in sorted(rows)],
        }

    def close(self) -> None:
        """Stops the workers that prepare batches."""
        self._batches.close()


def open_feed(
    program: TrainProgram, saved: dict[str, Any] | None, *, log: Callable[[str], None]
) -> Feed:
    """Returns the batches of a run for this process, after those of a checkpoint.

    Args:
        saved: the position in the data that the checkpoint holds; None for the beginning.
        log: prints one line.

    Raises:
        UserError: if the data differs from that of the checkpoint.
    """
    run = program.run
    rows = local_rows(batch_sharding(program.mesh, run.batch_size), run.batch_size)
    return Feed(run, rows, saved, log=log)


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


def _check_same(saved: dict[str, Any], mine: dict[str, Any], model_dir: str) -> None:
    for name in [*mine, *(saved.keys() - mine.keys())]:
        if saved.get(name) != mine.get(name):
            raise UserError(
                f"{model_dir} was trained with {name} {saved.get(name)}, got {mine.get(name)}: "
                "the saved position in the data would be wrong; use the former, another MODEL_DIR, "
                "or another train.data_seed, which restarts the data"
            )

"""A run's batches, from where its checkpoint stands, and where they stand for the next one."""

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
from t5lite.training.run import Run


class Feed:
    """Gives this process's rows of one batch after another. Close it.

    Args:
        rows: those of the global batch that this process reads.
        saved: what `state` returned for the checkpoint that the run goes on from; None for the
            beginning.
        say: is told where the data begins anew or batches are left out.

    Raises:
        UserError: where the data is not what it was when `saved` was made.
    """

    def __init__(
        self,
        run: Run,
        rows: Sequence[int],
        saved: dict[str, Any] | None,
        *,
        say: Callable[[str], None],
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
        self._rows, self._say = rows, say
        self._skip = [tuple(pair) for pair in run.skip_batches]
        if saved is not None and saved["about"]["data_seed"] != seed and run.data_seed is not None:
            say(f"the data begins anew with train.data_seed {seed}")
            saved = None
        cursors = None
        if saved is not None:
            _check_same(saved["about"], self._about, run.model_dir)
            cursors = [Cursor.from_json(saved["rows"][row]) for row in rows]
        self.number = 0 if saved is None else int(saved["batches"])
        known = [] if saved is None else [tuple(pair) for pair in saved["skip_batches"]]
        if late := [p for p in self._skip if p[0] <= self.number and p not in known]:
            say(
                f"batches up to {self.number} were taken before {late} of train.skip_batches was "
                "asked for; what is left of it will be left out"
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
                self._say(f"left out the batches up to {self.number}: train.skip_batches")

    def state(self) -> dict[str, Any]:
        """Returns where the data stands behind the latest batch, for JSON; the same everywhere.

        `about` is what it depends on, `batches` how many were taken or left out as `skip_batches`
        says, `rows` the cursor of each row of the global batch. Called by all processes at once.
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
        """Ends what makes batches ahead."""
        self._batches.close()


def _of_all_processes(value: dict[int, Any]) -> list[dict[str, Any]]:
    """Returns what every process has, as JSON gives it back."""
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
                "its place in the data would mean nothing; use the former, another MODEL_DIR, or a "
                "train.data_seed with which the data begins anew"
            )

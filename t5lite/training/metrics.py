"""What a run tells: `metrics.jsonl` is the record, TensorBoard a view of it."""

import contextlib
import json
import logging
import math
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from t5lite.core.files import write_atomically
from t5lite.core.run_directory import METRICS, read_metrics

log = logging.getLogger(__name__)


class MetricWriter:
    """Appends metrics of one run; close it.

    Args:
        model_dir: the run's folder.
        first_step: that the run goes on from. What an attempt that was cut off wrote after it is
            dropped: those steps are about to be taken again.
        is_new: whether there is no checkpoint of the run; a record that is there is renamed to
            `metrics.jsonl.old` then.
    """

    def __init__(self, model_dir: pathlib.Path, *, first_step: int, is_new: bool) -> None:
        path = model_dir / METRICS
        if path.exists() and is_new:
            # No checkpoint is left of what this file tells: it is another run's record.
            path.replace(path.with_suffix(".jsonl.old"))
        elif path.exists():
            kept = [line for line in read_metrics(model_dir) if line["step"] <= first_step]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._view: _TensorBoard | None = None
        with self._viewing():
            self._view = _TensorBoard(model_dir / "tensorboard", first_step=first_step)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes one line, at once; a number that is not finite becomes null."""
        numbers = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, "split": split, **numbers}) + "\n")
        self._file.flush()
        with self._viewing():
            if self._view is not None:
                self._view.write(step, split, metrics)

    def close(self) -> None:
        """Writes what is left."""
        self._file.close()
        with self._viewing():
            if self._view is not None:
                self._view.close()

    @contextlib.contextmanager
    def _viewing(self) -> Iterator[None]:
        """Gives up the view, and not the run, where it cannot be written."""
        try:
            yield
        except OSError as error:
            view, self._view = self._view, None
            if view is not None:
                with contextlib.suppress(OSError):
                    view.close()
            log.warning("nothing more is written for TensorBoard: %s", error)


class _TensorBoard:
    """A file of events, written at once.

    NOTE: tensorboardX's own `SummaryWriter` writes in a thread; once that has failed, whoever tells
    it more waits for ever.
    """

    def __init__(self, folder: pathlib.Path, *, first_step: int) -> None:
        # Late, because most commands write none.
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        self._make = event_pb2.Event
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter(str(folder / name))
        self._add(file_version="brain.Event:2")
        # What was told of later steps is not shown any more.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(session_log=start, step=first_step + 1)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in metrics.items():
            self._add(summary=scalar(f"{split}/{name}", value), step=step)
        self._file.flush()

    def _add(self, **what: Any) -> None:
        self._file.write(self._make(wall_time=time.time(), **what).SerializeToString())

    def close(self) -> None:
        self._file.close()


class NoWriter:
    """Stands in for a `MetricWriter` in every process but the first."""

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Has nothing to close."""

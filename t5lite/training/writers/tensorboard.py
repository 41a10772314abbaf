"""Event files for TensorBoard in `MODEL_DIR/tensorboard`."""

import dataclasses
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from t5lite.training.writers.writer import RunInfo


@dataclasses.dataclass(frozen=True)
class TensorBoard:
    """Writes scalars named SPLIT/NAME, and configuration and environment as text."""

    def open(self, info: RunInfo) -> "EventFile":
        """Opens a new event file."""
        return EventFile(info)


class EventFile:
    """An open event file; everything is written at once.

    NOTE: tensorboardX's own `SummaryWriter` writes in a thread. Once that thread has failed, every
    further call blocks.
    """

    def __init__(self, info: RunInfo) -> None:
        # Imported here, because most commands write no events.
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import text

        self._make_event = event_pb2.Event
        folder = info.model_dir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # The last number keeps apart the files of a run that returns to a checkpoint at once.
        number = len(list(folder.iterdir()))
        name = (
            f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{number}"
        )
        self._file = RecordWriter(str(folder / name))
        self._add(file_version="brain.Event:2")
        # TensorBoard hides events of this step and later from earlier files: a new run evaluates
        # its first step, also if an attempt before its first checkpoint did.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(session_log=start, step=info.first_step + (not info.is_new))
        environment = json.dumps(dict(info.environment), indent=1)
        for tag, content in {"config": info.config_text, "environment": environment}.items():
            self._add(summary=text(tag, f"```\n{content}\n```"), step=info.first_step)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes one event for each metric that is finite."""
        from tensorboardX.summary import scalar

        for name, value in metrics.items():
            if math.isfinite(value):
                self._add(summary=scalar(f"{split}/{name}", value), step=step)
        self._file.flush()

    def _add(self, **fields: Any) -> None:
        event = self._make_event(wall_time=time.time(), **fields)
        self._file.write(event.SerializeToString())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

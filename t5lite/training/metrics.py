"""What a run tells: `metrics.jsonl` is the record, TensorBoard a view of it."""

import json
import math
import pathlib
from collections.abc import Mapping

from t5lite.core.files import write_whole
from t5lite.core.run_directory import METRICS, read_metrics


class MetricWriter:
    """Appends metrics of one run; close it.

    Args:
        model_dir: the run's folder.
        first_step: of the checkpoint that the run goes on from. What an attempt that was cut off
            wrote after it is dropped: those steps are about to be taken again. With 0, for no
            checkpoint, a record that is there is renamed to `metrics.jsonl.old`.
    """

    def __init__(self, model_dir: pathlib.Path, *, first_step: int) -> None:
        # Late, because most commands write none.
        from tensorboardX import SummaryWriter

        path = model_dir / METRICS
        _drop_after(path, first_step)
        self._file = path.open("a")
        self._tensorboard = SummaryWriter(
            str(model_dir / "tensorboard"), purge_step=first_step + 1, write_to_disk=True
        )

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes one line, at once; a number that is not finite becomes null."""
        numbers = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, "split": split, **numbers}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._file.close()
        self._tensorboard.close()


class NoWriter:
    """Stands in for a `MetricWriter` in every process but the first."""

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Has nothing to close."""


def _drop_after(path: pathlib.Path, step: int) -> None:
    if path.exists() and step == 0:
        # No checkpoint is left of what this file tells: it is another run's record.
        path.replace(path.with_suffix(".jsonl.old"))
    elif path.exists():
        kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))

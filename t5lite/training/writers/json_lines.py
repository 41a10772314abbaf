"""`metrics.jsonl`, the record of a run, with `config.gin` and `environment.json` beside it."""

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Mapping

from t5lite.core.errors import errors_named
from t5lite.core.files import write_atomically
from t5lite.core.run_directory import METRICS, read_metrics
from t5lite.training.writers.writer import RunInfo

RUN_CONFIG_FILE = "config.gin"
ENVIRONMENT_FILE = "environment.json"


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """Writes one JSON object a line. Every run has this writer: other commands read its file."""

    def open(self, info: RunInfo) -> "JsonLinesFile":
        """Opens `metrics.jsonl` for appending, without metrics of steps after `first_step`.

        If the run has no checkpoint, the file belongs to another run, or to an attempt whose steps
        are repeated. It is renamed to `metrics.jsonl.old`, or `metrics.jsonl.old.2` and so on.
        """
        write_atomically(info.model_dir / RUN_CONFIG_FILE, info.config_text)
        write_atomically(
            info.model_dir / ENVIRONMENT_FILE, json.dumps(dict(info.environment), indent=1) + "\n"
        )
        path = info.model_dir / METRICS
        if info.is_new and path.exists() and path.stat().st_size:
            path.rename(_free_name(path))
        elif path.exists():
            kept = [
                line for line in read_metrics(info.model_dir) if line["step"] <= info.first_step
            ]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        return JsonLinesFile(info)


def _free_name(path: pathlib.Path) -> pathlib.Path:
    """Returns the first of the names of old files that no file has."""
    old = path.with_name(f"{path.name}.old")
    for number in itertools.count(2):
        if not old.exists():
            break
        old = path.with_name(f"{path.name}.old.{number}")
    return old


class JsonLinesFile:
    """An open `metrics.jsonl`."""

    def __init__(self, info: RunInfo) -> None:
        self._path = info.model_dir / METRICS
        self._file = self._path.open("a")

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes one line and flushes it; a number that is not finite becomes null."""
        numbers = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        with errors_named(self._path):
            self._file.write(json.dumps({"step": step, "split": split, **numbers}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with errors_named(self._path):
            self._file.close()

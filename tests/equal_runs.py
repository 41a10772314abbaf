"""What two runs of equal choices have in common, however often one of them was killed."""

import dataclasses
import hashlib
import json
import pathlib
import re
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from tensorboardX.proto import event_pb2

from t5lite.cli.vectorized import load_trial
from t5lite.core.lazy import by_name
from t5lite.core.run_directory import RESULT, read_metrics
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.feed import Feed
from t5lite.training.stored_checkpoints import StoredCheckpoints

# Metrics that are measured times, or follow from them.
_TIME = re.compile(r"_seconds$|_per_second$|(^|/)(mfu_fraction|slowest_process)$")


def content_of(model_dir: pathlib.Path, *, batches: int) -> dict[str, Any]:
    """Returns all that is recorded of a run and is no time, as plain data.

    Args:
        batches: number of batches after the last checkpoint whose digest is included.
    """
    checkpoints: dict[str, Any] = {}
    saved = StoredCheckpoints(model_dir / FOLDER)
    steps = saved.steps()
    for step in steps:
        checkpoints[str(step)] = {"about": saved.about(step), "state": _arrays(saved, step)}
    result = model_dir / RESULT
    return {
        "result": _timeless(json.loads(result.read_text())) if result.exists() else None,
        "metrics": [_timeless(line) for line in read_metrics(model_dir)],
        "events": {
            t: v for t, v in events_in(model_dir / "tensorboard").items() if not _TIME.search(t)
        },
        "checkpoints": checkpoints,
        "batches": _batches(model_dir, checkpoints[str(steps[-1])]["about"]["data"], batches),
    }


def differences(mine: Any, wanted: Any, path: str = "") -> list[str]:
    """Returns the paths and values at which plain data differs."""
    if type(mine) is type(wanted) and isinstance(mine, dict):
        names = [*wanted, *(mine.keys() - wanted.keys())]
        return [
            line
            for name in names
            for line in differences(mine.get(name), wanted.get(name), f"{path}/{name}")
        ]
    if type(mine) is type(wanted) and isinstance(mine, list) and len(mine) == len(wanted):
        pairs = enumerate(zip(mine, wanted, strict=True))
        return [line for n, (a, b) in pairs for line in differences(a, b, f"{path}/{n}")]
    return [] if mine == wanted else [f"{path}: {str(mine)[:200]} instead of {str(wanted)[:200]}"]


def events_in(folder: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """Returns steps and values of each tag, as TensorBoard shows those of all files together.

    The start of a session at a step hides all earlier events of this step and later ones.
    """
    shown: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events*")):
        for event in _events(file.read_bytes()):
            if event.session_log.status == event_pb2.SessionLog.START:
                for tag, points in shown.items():
                    shown[tag] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown


def _events(data: bytes) -> Iterator[event_pb2.Event]:
    """Yields the records of an event file; a kill may have cut the last one short."""
    while len(data) >= 12:
        (length,) = struct.unpack("<Q", data[:8])
        if len(data) < length + 16:
            return
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[length + 16 :]


def _timeless(line: Any) -> Any:
    if isinstance(line, dict):
        return {name: _timeless(value) for name, value in line.items() if not _TIME.search(name)}
    return line


def _arrays(checkpoints: StoredCheckpoints, step: int) -> dict[str, str]:
    """Returns a digest of each array of a state."""
    metadata = checkpoints.metadata(step)
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
    handler = ocp.PyTreeCheckpointHandler()
    folder = pathlib.Path(checkpoints.path(step)) / "state"
    state = ocp.Checkpointer(handler).restore(folder, ocp.args.PyTreeRestore(None, arguments))
    return {name: _digest(array) for name, array in by_name(state).items()}


def _batches(model_dir: pathlib.Path, data: dict[str, Any], count: int) -> list[str]:
    """Returns a digest of each of the batches that a run takes next."""
    run, _ = load_trial([f"--gin_file={model_dir / 'config.gin'}"])
    run = dataclasses.replace(run, data_workers=0)
    with closing(Feed(run, range(run.batch_size), data, log=print)) as feed:
        return [_digest(*(value for _, value in sorted(next(feed).items()))) for _ in range(count)]


def _digest(*arrays: Any) -> str:
    seen = hashlib.sha256()
    for array in jax.device_get(arrays):
        whole = np.asarray(array)
        seen.update(f"{whole.dtype}{whole.shape}".encode() + whole.tobytes())
    return seen.hexdigest()[:16]

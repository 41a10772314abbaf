"""A run's folder as others read it: the record of its metrics, its attempts and its result.

`metrics.jsonl` has a line for what is told at a step, `attempts.jsonl` one for each start of the
run and one for its end, and `result.json` is there once all steps are done.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from t5lite.core.errors import Unavailable
from t5lite.core.files import held, write_whole

METRICS, ATTEMPTS, RESULT, LOCK = "metrics.jsonl", "attempts.jsonl", "result.json", "train.lock"
OUTCOMES = ("finished", "preempted", "lacking", "failed", "killed")
# What a process that saved its state and wants to be started again ends with.
RESTART_EXIT = 42
# And one that lacks something which may be there later.
UNAVAILABLE_EXIT = 69


class Preempted(Exception):
    """Training was asked to stop, and saved what it had at `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}, which is saved: start again to go on")
        self.step = step


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of a JSONL file; one cut short by a crash is left out, no file has none."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return lines


def read_metrics(model_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what `metrics.jsonl` says."""
    return read_records(model_dir / METRICS)


def curve(metrics: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """Returns the steps and values of a metric of evaluations, or of SPLIT/NAME, in order."""
    split, _, short = name.rpartition("/")
    if split not in {line["split"] for line in metrics}:
        # A task's own metric has its name before it.
        split, short = "", name
    lines = [m for m in metrics if (m["split"] == split if split else m["split"] != "train")]
    return [(m["step"], float(m[short])) for m in lines if m.get(short) is not None]


def outcomes(model_dir: pathlib.Path) -> dict[str, int]:
    """Counts how the attempts at a run ended, by `OUTCOMES`.

    An attempt that said no more was killed; the latest may be going on, which `is_locked` tells.
    """
    ends = {
        line["attempt"]: line.get("outcome", "killed")
        for line in read_records(model_dir / ATTEMPTS)
    }
    counts = Counter(ends.values())
    return {name: counts[name] for name in OUTCOMES}


@contextlib.contextmanager
def attempt(model_dir: pathlib.Path, command: Sequence[str]) -> Iterator[None]:
    """Writes down that a run was started and, behind it, how that ended. One at a time.

    Raises:
        Unavailable: where another process trains in the same folder.
    """
    with locked(model_dir):
        path = model_dir / ATTEMPTS
        number = next_attempt(model_dir)
        append(
            path,
            attempt=number,
            began=now(),
            command=list(command),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        started, outcome, error = time.monotonic(), "failed", None
        try:
            yield
            outcome = "finished"
        except Preempted:
            outcome = "preempted"
            raise
        except KeyboardInterrupt:
            outcome = "killed"
            raise
        except Unavailable as caught:
            outcome, error = "lacking", str(caught).splitlines()[0]
            raise
        except BaseException as caught:
            error = (str(caught).splitlines() or [type(caught).__name__])[0]
            raise
        finally:
            seconds = round(time.monotonic() - started, 3)
            said = {} if error is None else {"error": error}
            append(path, attempt=number, ended=now(), outcome=outcome, seconds=seconds, **said)


def open_attempt(model_dir: pathlib.Path) -> int | None:
    """Returns the attempt of which no end is written down: it goes on, or was killed."""
    lines = read_records(model_dir / ATTEMPTS)
    return lines[-1]["attempt"] if lines and "outcome" not in lines[-1] else None


def close_attempt(model_dir: pathlib.Path, outcome: str) -> None:
    """Writes down how an attempt ended that could not say so itself; of one that did, nothing."""
    number = open_attempt(model_dir)
    if number is not None:
        append(model_dir / ATTEMPTS, attempt=number, ended=now(), outcome=outcome)


def next_attempt(model_dir: pathlib.Path) -> int:
    """Returns the number of the attempt that follows those written down."""
    lines = read_records(model_dir / ATTEMPTS)
    return max((line["attempt"] for line in lines), default=0) + 1


@contextlib.contextmanager
def locked(model_dir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in the same folder. It goes with the process."""
    with held(
        model_dir / LOCK,
        lambda who: (
            f"{model_dir} is being trained by process {who}; wait for it, stop it, or use "
            "another MODEL_DIR"
        ),
    ):
        yield


def is_locked(model_dir: pathlib.Path) -> bool:
    """Whether a process is training in the folder."""
    try:
        # To be written: over NFS no other file can be locked.
        with (model_dir / LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def write_result(model_dir: pathlib.Path, step: int) -> None:
    """Writes `result.json`: the last step, and the latest scores of every split but "train"."""
    scores: dict[str, dict[str, Any]] = {}
    for line in read_metrics(model_dir):
        if line["split"] != "train":
            scores[line["split"]] = {k: v for k, v in line.items() if k != "split"}
    write_whole(model_dir / RESULT, json.dumps({"step": step, "scores": scores}, indent=1) + "\n")


def append(path: pathlib.Path, **record: Any) -> None:
    """Adds one line at once; behind a line that a crash cut short, on a new one."""
    with path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""The records in a run's directory: metrics, attempts and the result.

`metrics.jsonl` has a line for each write of metrics, `attempts.jsonl` one for each start of the run
and one for its end. `result.json` exists once all steps are done.
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from t5lite.core.errors import Diverged, Unavailable, UserError
from t5lite.core.files import write_atomically
from t5lite.core.locks import hold_lock, lock_holder

METRICS = "metrics.jsonl"
ATTEMPTS = "attempts.jsonl"
RESULT = "result.json"
LOCK = "train.lock"
OUTCOMES = ("finished", "preempted", "unavailable", "rejected", "failed", "killed")
# Outcomes as earlier releases recorded them.
RENAMED_OUTCOMES = {"lacking": "unavailable"}
# Exit status of a process that saved its state and asks to be restarted.
RESTART_EXIT = 42
# Exit status of a process that needs something which may become available later.
UNAVAILABLE_EXIT = 69


class Preempted(Exception):
    """Training was asked to stop and saved its state at `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}, which is saved; restart to resume")
        self.step = step


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the objects of a JSONL file, without a line that a crash cut short; [] if missing."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return lines


def read_metrics(model_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of `metrics.jsonl`."""
    return read_records(model_dir / METRICS)


def curve(metrics: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """Returns steps and values of a metric in order: of SPLIT/NAME, or NAME of all evaluations."""
    split, _, short = name.rpartition("/")
    if split not in {line["split"] for line in metrics}:
        # TASK/NAME, the metric of one task.
        split = ""
        short = name
    lines = [m for m in metrics if (m["split"] == split if split else m["split"] != "train")]
    return [(m["step"], float(m[short])) for m in lines if m.get(short) is not None]


def outcomes(model_dir: pathlib.Path) -> dict[str, int]:
    """Counts the attempts of a run by outcome.

    An attempt without a recorded outcome counts as killed; `is_locked` says whether the latest is
    still running.
    """
    ends = {
        line["attempt"]: line.get("outcome", "killed")
        for line in read_records(model_dir / ATTEMPTS)
    }
    counts = Counter(RENAMED_OUTCOMES.get(outcome, outcome) for outcome in ends.values())
    return {name: counts[name] for name in OUTCOMES}


@contextlib.contextmanager
def attempt(model_dir: pathlib.Path, command: Sequence[str]) -> Iterator[None]:
    """Records the start of a run and, on exit, its outcome; holds the run's lock in between.

    Raises:
        Unavailable: if another process trains in the same directory.
    """
    with locked(model_dir):
        path = model_dir / ATTEMPTS
        number = next_attempt(model_dir)
        append_record(
            path,
            attempt=number,
            began=utc_now(),
            command=list(command),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        started = time.monotonic()
        outcome = "failed"
        error = None
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
            outcome = "unavailable"
            error = str(caught).splitlines()[0]
            raise
        except UserError as caught:
            # A user's mistake; a run that diverged on valid inputs failed.
            outcome = "failed" if isinstance(caught, Diverged) else "rejected"
            error = (str(caught).splitlines() or [type(caught).__name__])[0]
            raise
        except BaseException as caught:
            error = (str(caught).splitlines() or [type(caught).__name__])[0]
            raise
        finally:
            seconds = round(time.monotonic() - started, 3)
            end: dict[str, Any] = {"ended": utc_now(), "outcome": outcome, "seconds": seconds}
            if error is not None:
                end["error"] = error
            append_record(path, attempt=number, **end)


def open_attempt(model_dir: pathlib.Path) -> int | None:
    """Returns the latest attempt if it recorded no outcome: it is running or was killed."""
    lines = read_records(model_dir / ATTEMPTS)
    return lines[-1]["attempt"] if lines and "outcome" not in lines[-1] else None


def close_attempt(model_dir: pathlib.Path, outcome: str) -> None:
    """Records the outcome of the latest attempt unless it recorded one itself."""
    number = open_attempt(model_dir)
    if number is not None:
        append_record(model_dir / ATTEMPTS, attempt=number, ended=utc_now(), outcome=outcome)


def next_attempt(model_dir: pathlib.Path) -> int:
    """Returns the number of the next attempt, counted from 1."""
    lines = read_records(model_dir / ATTEMPTS)
    return max((line["attempt"] for line in lines), default=0) + 1


def locked(model_dir: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes from training in the same directory while the context is open."""
    return hold_lock(
        model_dir / LOCK,
        lambda holder: (
            f"{model_dir} is being trained by process {holder}; wait for it, stop it, or use "
            "another MODEL_DIR"
        ),
    )


def is_locked(model_dir: pathlib.Path) -> bool:
    """Whether a process is training in the directory."""
    return lock_holder(model_dir / LOCK) is not None


def write_result(model_dir: pathlib.Path, step: int) -> None:
    """Writes `result.json`: the last step, and the latest scores of every split but "train"."""
    scores: dict[str, dict[str, Any]] = {}
    for line in read_metrics(model_dir):
        if line["split"] != "train":
            scores[line["split"]] = {k: v for k, v in line.items() if k != "split"}
    write_atomically(
        model_dir / RESULT, json.dumps({"step": step, "scores": scores}, indent=1) + "\n"
    )


def append_record(path: pathlib.Path, **record: Any) -> None:
    """Appends one JSON line, on a new line if a crash cut the last one short."""
    with path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def utc_now() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

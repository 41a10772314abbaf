"""The records in a run's directory: metrics, attempts and the result.

`metrics.jsonl` has a line for each write of metrics, `attempts.jsonl` one for each start of the run
and one for its end. `result.json` exists once the run has ended by itself.
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

from t5lite.core.ending import recorded_at_end
from t5lite.core.errors import WRONG_PATH, Diverged, Unavailable, UserError, errors_named
from t5lite.core.files import write_atomically
from t5lite.core.locks import hold_lock, lock_holder
from t5lite.core.records import (
    NUMBER,
    OBJECT,
    TEXT,
    TIME,
    Kind,
    Schema,
    integer,
    list_of,
    object_of,
    or_null,
    read_document,
    read_json_lines,
)

METRICS = "metrics.jsonl"
ATTEMPTS = "attempts.jsonl"
RESULT = "result.json"
LOCK = "train.lock"
# Seconds spent in each phase of training, a line for each time that metrics are written.
GOODPUT = "goodput.jsonl"
OUTCOMES = ("finished", "preempted", "unavailable", "stalled", "rejected", "failed", "killed")
# Outcomes as earlier releases recorded them.
RENAMED_OUTCOMES = {"lacking": "unavailable"}
# A line of `metrics.jsonl`; a metric that is not finite is null.
METRICS_SCHEMA = Schema(required={"step": integer(0), "split": TEXT}, others=or_null(NUMBER))
# A line of `attempts.jsonl`: the start of an attempt, or its end.
ATTEMPT_SCHEMA = Schema(
    required={"attempt": integer(0)},
    optional={
        "began": TIME,
        "command": list_of(TEXT),
        "host": TEXT,
        "pid": integer(0),
        "ended": TIME,
        "outcome": Kind("a known outcome", lambda value: value in (*OUTCOMES, *RENAMED_OUTCOMES)),
        "seconds": NUMBER,
        "error": TEXT,
        "exit_status": NUMBER,
    },
)
# A line of `goodput.jsonl`: the seconds of each phase since the beginning of an attempt.
GOODPUT_SCHEMA = Schema(
    required={"attempt": integer(0), "step": integer(0), "seconds": object_of(NUMBER)}
)
RESULT_SCHEMA = Schema(required={"step": integer(0)}, optional={"scores": OBJECT, "ended": TEXT})
# Why a run ended that has done all its steps.
ALL_STEPS = "all steps"
_REMEDY = "correct or delete that line"
# Exit status of a process that saved its state and asks to be restarted.
RESTART_EXIT = 42
# Exit status of a process that needs something which may become available later.
UNAVAILABLE_EXIT = 69
# Exit status of a process that its watchdog ended, because a phase took longer than its limit.
STALLED_EXIT = 70


class Preempted(Exception):
    """Training was asked to stop and saved its state at `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}, which is saved; restart to resume")
        self.step = step


def read_metrics(model_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of `metrics.jsonl`; [] if there is no such file.

    Raises:
        UserError: for a line that is no record of metrics.
    """
    return read_json_lines(model_dir / METRICS, METRICS_SCHEMA, _REMEDY)


def read_attempts(model_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of `attempts.jsonl`; [] if there is no such file.

    Raises:
        UserError: for a line that is no record of an attempt.
    """
    return read_json_lines(model_dir / ATTEMPTS, ATTEMPT_SCHEMA, _REMEDY)


def read_goodput_lines(model_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of `goodput.jsonl`; [] if there is no such file.

    Raises:
        UserError: for a line that is no record of goodput.
    """
    return read_json_lines(model_dir / GOODPUT, GOODPUT_SCHEMA, _REMEDY)


def read_result(model_dir: pathlib.Path) -> dict[str, Any]:
    """Returns the content of `result.json`.

    Raises:
        UserError: if it is damaged.
    """
    path = model_dir / RESULT
    return read_document(path, RESULT_SCHEMA, f"delete it and train again in {model_dir}")


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
    ends = {line["attempt"]: line.get("outcome", "killed") for line in read_attempts(model_dir)}
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

        def record_end(outcome: str, error: str | None) -> None:
            seconds = round(time.monotonic() - started, 3)
            end: dict[str, Any] = {"ended": utc_now(), "outcome": outcome, "seconds": seconds}
            if error is not None:
                end["error"] = error
            append_record(path, attempt=number, **end)

        try:
            with recorded_at_end(record_end):
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
        except OSError as caught:
            outcome = "rejected" if isinstance(caught, WRONG_PATH) else "unavailable"
            error = str(caught)
            raise
        except BaseException as caught:
            error = (str(caught).splitlines() or [type(caught).__name__])[0]
            raise
        finally:
            # The error that ended the attempt comes first: on a full disk there is no room for its
            # record either.
            with contextlib.suppress(*(() if outcome == "finished" else (OSError,))):
                record_end(outcome, error)


def open_attempt(model_dir: pathlib.Path) -> int | None:
    """Returns the latest attempt if it recorded no outcome: it is running or was killed."""
    lines = read_attempts(model_dir)
    return lines[-1]["attempt"] if lines and "outcome" not in lines[-1] else None


def close_attempt(model_dir: pathlib.Path, outcome: str) -> None:
    """Records the outcome of the latest attempt unless it recorded one itself."""
    number = open_attempt(model_dir)
    if number is not None:
        append_record(model_dir / ATTEMPTS, attempt=number, ended=utc_now(), outcome=outcome)


def next_attempt(model_dir: pathlib.Path) -> int:
    """Returns the number of the next attempt, counted from 1."""
    lines = read_attempts(model_dir)
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


def write_result(model_dir: pathlib.Path, step: int, ended: str | None = None) -> None:
    """Writes `result.json`: the last step, why it is, and the latest scores of the evaluations.

    Args:
        ended: why the run ended before `train.total_steps`; None if it did not.
    """
    scores: dict[str, dict[str, Any]] = {}
    for line in read_metrics(model_dir):
        if line["split"] != "train":
            scores[line["split"]] = {k: v for k, v in line.items() if k != "split"}
    result = {"step": step, "ended": ended or ALL_STEPS, "scores": scores}
    write_atomically(model_dir / RESULT, json.dumps(result, indent=1) + "\n")


def append_record(path: pathlib.Path, **record: Any) -> None:
    """Appends one JSON line, on a new line if a crash cut the last one short."""
    with errors_named(path), path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def utc_now() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

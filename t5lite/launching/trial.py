"""One trial: starts its command, watches it, restarts it if due, and records how it ended."""

import contextlib
import pathlib
import shlex
import threading
import time
from collections.abc import Sequence
from typing import IO, ClassVar, Protocol, runtime_checkable

from t5lite.core.locks import try_lock
from t5lite.core.run_directory import (
    ATTEMPTS,
    METRICS,
    RESTART_EXIT,
    RESULT,
    STALLED_EXIT,
    UNAVAILABLE_EXIT,
    append_record,
    close_attempt,
    is_locked,
    next_attempt,
    open_attempt,
    outcomes,
    read_attempts,
    read_result,
    utc_now,
)
from t5lite.launching.launch import LOG, Launch
from t5lite.launching.processes import STOPPED_EXITS, ProcessGroup
from t5lite.launching.sweeps.trial_store import TrialStore

# Exit status of a user's mistake: a restart would fail again.
MISTAKE_EXIT = 2
TRIAL_POLL_SECONDS = 0.5
# Until an attempt that failed for a missing resource is retried.
TRIAL_RETRY_SECONDS = 5.0


@runtime_checkable
class Starter(Protocol):
    """The part of an engine that watching a trial needs; `WatchingEngine` describes it."""

    restarts: ClassVar[bool]
    attaches: ClassVar[bool]

    def start(self, number: int, arguments: Sequence[str], log: IO[bytes]) -> ProcessGroup: ...
    def release(self, numbers: Sequence[int]) -> None: ...


def run_trial(
    launch: Launch,
    store: TrialStore,
    number: int,
    starter: Starter,
    stopping: threading.Event,
) -> str:
    """Runs a trial to its end, or until `stopping` is set.

    Returns:
        "complete", "pruned", "failed", "stopped" if it can be resumed, or "unavailable" if a
        resource is missing.

    Raises:
        UserError: if the objective is not a metric of the run.
    """
    model_dir = launch.model_dir(number)
    model_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if not _locks(stack.enter_context((model_dir / "trial.lock").open("w")), stopping):
            return "stopped"
        trial = store.take(number)
        if trial is None:
            return store.outcome_of(number)
        arguments = launch.arguments(number, trial.params)
        log = stack.enter_context((model_dir / LOG).open("ab", buffering=0))
        retries = 0
        while True:
            # An attempt that another supervisor left behind was asked to stop when that one died.
            while not starter.attaches and is_locked(model_dir) and not stopping.is_set():
                time.sleep(TRIAL_POLL_SECONDS)
            if stopping.is_set():
                return "stopped"
            # An earlier supervisor may have been killed before it recorded the end.
            if (model_dir / RESULT).exists():
                return complete_trial(launch, store, number)
            log.write(f"{utc_now()} {shlex.join(['t5lite', *arguments])}\n".encode())
            if not starter.attaches:
                close_attempt(model_dir, "killed")
            before = len(read_attempts(model_dir))
            group = starter.start(number, arguments, log)
            code, pruned, asked = _watch(launch, store, number, group, stopping)
            outcome = _outcome(launch, model_dir, code, before, asked=asked or stopping.is_set())
            if outcome == "finished":
                return complete_trial(launch, store, number)
            if pruned:
                store.tell(number, "pruned")
                return "pruned"
            if stopping.is_set():
                return "stopped"
            failures = outcomes(model_dir)["failed"] + outcomes(model_dir)["killed"]
            if outcome == "rejected" or (outcome == "failed" and failures > launch.max_failures):
                store.tell(number, "failed")
                return "failed"
            if outcome in ("unavailable", "stalled"):
                # Not the trial's fault: it can be resumed.
                retries += 1
                if retries > launch.max_failures:
                    return "unavailable"
                stopping.wait(TRIAL_RETRY_SECONDS)
            if not starter.restarts:
                return "stopped"


def complete_trial(launch: Launch, store: TrialStore, number: int) -> str:
    """Records the result of a finished trial; in a sweep it needs a score of its last step."""
    scores = launch.scores(number) if launch.command == "train" else []
    if launch.is_sweep:
        result = read_result(launch.model_dir(number))
        if not scores or scores[-1][0] != result["step"]:
            store.tell(number, "failed")
            return "failed"
    # Optuna takes no trial without a value; that of a single command is not used.
    store.tell(number, "complete", scores[-1][1] if scores else 0.0)
    return "complete"


def _watch(
    launch: Launch,
    store: TrialStore,
    number: int,
    group: ProcessGroup,
    stopping: threading.Event,
) -> tuple[int, bool, bool]:
    """Watches an attempt to its end; returns its status, and whether it was pruned and stopped."""
    metrics = launch.model_dir(number) / METRICS
    pruned = False
    asked = False
    num_scores = 0
    size_read = 0
    while (code := group.poll()) is None:
        size = metrics.stat().st_size if metrics.exists() else 0
        # Without pruning only until the objective is found to be a metric of the run.
        if launch.command == "train" and size > size_read and (launch.prune or not num_scores):
            scores = launch.scores(number)
            size_read = size
            for step, value in scores[num_scores:] if launch.prune and not pruned else ():
                pruned = store.report(number, step, value) if step else False
            num_scores = len(scores)
        if (pruned or stopping.is_set()) and not asked:
            group.stop()
            asked = True
        stopping.wait(TRIAL_POLL_SECONDS) if not asked else time.sleep(TRIAL_POLL_SECONDS)
    return code, pruned, asked


def _locks(lock: IO[str], stopping: threading.Event) -> bool:
    """Waits until no other process watches a trial; returns False once `stopping` is set."""
    while not stopping.is_set():
        if try_lock(lock):
            return True
        stopping.wait(TRIAL_POLL_SECONDS)
    return False


def _outcome(
    launch: Launch, model_dir: pathlib.Path, code: int, before: int, *, asked: bool
) -> str:
    """Returns how an attempt ended, from what the run recorded if it did, else from its status.

    If one of several processes stops first, the status may be that of another one that was killed.
    """
    lines = read_attempts(model_dir)
    is_open = open_attempt(model_dir) is not None
    free = (RESTART_EXIT, *(STOPPED_EXITS if asked else ()))
    if len(lines) == before and not is_open and code not in (0, *free):
        # The command ended before it recorded an attempt.
        outcomes_by_code = {
            UNAVAILABLE_EXIT: "unavailable",
            STALLED_EXIT: "stalled",
            MISTAKE_EXIT: "rejected",
        }
        outcome = outcomes_by_code.get(code, "failed")
        append_record(
            model_dir / ATTEMPTS,
            attempt=next_attempt(model_dir),
            ended=utc_now(),
            outcome=outcome,
            exit_status=code,
        )
        return outcome
    if code == 0 and (launch.command != "train" or (model_dir / RESULT).exists()):
        return "finished"
    recorded = [line["outcome"] for line in lines[before:] if "outcome" in line]
    if code in free or recorded[-1:] == ["preempted"]:
        return "preempted"
    if code in (UNAVAILABLE_EXIT, STALLED_EXIT):
        return "unavailable"
    return "rejected" if code == MISTAKE_EXIT else "failed"

"""One trial: its command is started, watched, started again where that is due, and told of."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Protocol, runtime_checkable

from t5lite.core.locks import try_lock
from t5lite.core.run_directory import (
    ATTEMPTS,
    METRICS,
    RESTART_EXIT,
    RESULT,
    UNAVAILABLE_EXIT,
    append_record,
    close_attempt,
    is_locked,
    next_attempt,
    open_attempt,
    outcomes,
    read_records,
    utc_now,
)
from t5lite.launching.launch import LOG, Launch
from t5lite.launching.sweeps.study import Study

# What a user's mistake ends with: nothing to be gained by another start.
MISTAKE_EXIT = 2
ASKED_TO_STOP = (RESTART_EXIT, -signal.SIGTERM, 128 + signal.SIGTERM)
POLL_SECONDS = 0.5
# What is lacking may be there then.
RETRY_SECONDS = 5.0


@runtime_checkable
class Group(Protocol):
    """Processes that work as one."""

    def poll(self) -> int | None:
        """Returns the exit status once all have ended."""

    def stop(self) -> None:
        """Asks them to save and end."""


@runtime_checkable
class Engine(Protocol):
    """Where trials run.

    Attributes:
        restarts: whether a trial that was preempted or crashed is started again at once;
            otherwise whoever called does that.
        attaches: whether a start goes on with what an earlier launcher has left running.
    """

    restarts: bool
    attaches: bool

    def start(self, number: int, arguments: Sequence[str], log: IO[bytes]) -> Group:
        """Starts `t5lite ARGUMENTS` with its output appended to a file."""

    def end(self, number: int) -> None:
        """Gives back what a trial held."""


def run_trial(
    launch: Launch,
    study: Study,
    number: int,
    engine: Engine,
    stopping: threading.Event,
) -> str:
    """Runs a trial to its end, or until `stopping` is set.

    Returns:
        "complete", "pruned", "failed", "stopped" if it can be resumed, or "unavailable" if a
        resource is missing.

    Raises:
        UserError: where the objective is no metric of the run.
    """
    model_dir = launch.model_dir(number)
    model_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if not _watches(stack.enter_context((model_dir / "trial.lock").open("w")), stopping):
            return "stopped"
        trial = study.take(number)
        if trial is None:
            return "complete"
        arguments = launch.arguments(number, trial.params)
        log = stack.enter_context((model_dir / LOG).open("ab", buffering=0))
        lacked = 0
        while True:
            # What another supervisor left behind, asked to stop when that one was killed.
            while not engine.attaches and is_locked(model_dir) and not stopping.is_set():
                time.sleep(POLL_SECONDS)
            if stopping.is_set():
                return "stopped"
            # Whoever ran it may have been killed before it could tell.
            if (model_dir / RESULT).exists():
                return complete(launch, study, number)
            log.write(f"{utc_now()} t5lite {' '.join(arguments)}\n".encode())
            if not engine.attaches:
                close_attempt(model_dir, "killed")
            before = len(read_records(model_dir / ATTEMPTS))
            group, pruned, asked = engine.start(number, arguments, log), False, False
            told, read = 0, 0
            while (code := group.poll()) is None:
                size = _size(model_dir / METRICS)
                # Without pruning once, to see that the objective is there.
                if launch.command == "train" and size > read and (launch.prune or not told):
                    scores, read = launch.scores(number), size
                    for step, value in scores[told:] if launch.prune and not pruned else ():
                        pruned = study.report(trial, step, value) if step else False
                    told = len(scores)
                if (pruned or stopping.is_set()) and not asked:
                    group.stop()
                    asked = True
                stopping.wait(POLL_SECONDS) if not asked else time.sleep(POLL_SECONDS)
            how = _outcome(launch, model_dir, code, before, asked=asked or stopping.is_set())
            if how == "finished":
                return complete(launch, study, number)
            if pruned:
                study.tell(number, "pruned")
                return "pruned"
            if stopping.is_set():
                return "stopped"
            failures = outcomes(model_dir)["failed"] + outcomes(model_dir)["killed"]
            if how == "mistake" or (how == "failed" and failures > launch.max_failures):
                study.tell(number, "failed")
                return "failed"
            if how == "unavailable":
                # Not the trial's fault: it has not failed for good.
                lacked += 1
                if lacked > launch.max_failures:
                    return "unavailable"
                stopping.wait(RETRY_SECONDS)
            if not engine.restarts:
                return "stopped"


def complete(launch: Launch, study: Study, number: int) -> str:
    """Tells what a trial came to; in a sweep one without a score of its last step has failed."""
    scores = launch.scores(number) if launch.command == "train" else []
    if launch.is_sweep:
        result = json.loads((launch.model_dir(number) / RESULT).read_text())
        if not scores or scores[-1][0] != result["step"]:
            study.tell(number, "failed")
            return "failed"
    # Optuna takes no trial without a value; of one alone nothing is made of it.
    study.tell(number, "complete", scores[-1][1] if scores else 0.0)
    return "complete"


def _watches(lock: IO[str], stopping: threading.Event) -> bool:
    """Waits until nobody else watches a trial, or returns False once `stopping` is set."""
    while not stopping.is_set():
        if try_lock(lock):
            return True
        stopping.wait(POLL_SECONDS)
    return False


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _outcome(
    launch: Launch, model_dir: pathlib.Path, code: int, before: int, *, asked: bool
) -> str:
    """Says how processes ended: by what the run wrote, where it did, and not by their status alone.

    Where several processes stop, the status may be that of one that was killed behind the others.
    """
    lines = read_records(model_dir / ATTEMPTS)
    is_open = open_attempt(model_dir) is not None
    free = (RESTART_EXIT, *(ASKED_TO_STOP if asked else ()))
    if len(lines) == before and not is_open and code not in (0, MISTAKE_EXIT, *free):
        # It came to no beginning.
        outcome = "unavailable" if code == UNAVAILABLE_EXIT else "failed"
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
    said = [line["outcome"] for line in lines[before:] if "outcome" in line]
    if code in free or said[-1:] == ["preempted"]:
        return "preempted"
    if code == UNAVAILABLE_EXIT:
        return "unavailable"
    return "mistake" if code == MISTAKE_EXIT else "failed"


class Processes:
    """Commands on this machine that work as one: where one fails, the others are ended."""

    def __init__(
        self, commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], log: IO[bytes]
    ) -> None:
        self._processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # Ctrl-C is for the launcher, which asks each of them once.
                start_new_session=True,
            )
            for command, environment in commands
        ]

    def poll(self) -> int | None:
        """Returns the first status that is not 0, or 0, once all have ended."""
        codes = [process.poll() for process in self._processes]
        bad = [code for code in codes if code not in (None, 0, *ASKED_TO_STOP)]
        if bad:
            for process in self._processes:
                process.kill()
                process.wait()
            return bad[0]
        if None in codes:
            return None
        return next((code for code in codes if code), 0)

    def stop(self) -> None:
        """Asks all of them to save and end."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()

"""One trial's slice, from its creation to the end of an attempt, and its run on it."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from t5lite.core.errors import Unavailable, UserError
from t5lite.core.run_directory import (
    RESTART_EXIT,
    UNAVAILABLE_EXIT,
    close_attempt,
    next_attempt,
    open_attempt,
)
from t5lite.launching.engines.tpu import gcloud
from t5lite.launching.launch import Launch

# What worker.sh ends with where it knows nothing of an attempt.
UNKNOWN_EXIT = 75
# What it ends with behind a run, and the run's own status; 103 is for all others.
ENDS = {
    0: 0,
    RESTART_EXIT: RESTART_EXIT,
    UNAVAILABLE_EXIT: UNAVAILABLE_EXIT,
    101: 1,
    102: 2,
    103: 137,
}
# Any other one is gcloud's or ssh's: the way to a worker is cut.
CUT = 255
LASTING_SECONDS = 60


class Watch:
    """One attempt at a trial, watched by a thread of its own."""

    def __init__(
        self, launch: Launch, number: int, arguments: Sequence[str], log: IO[bytes]
    ) -> None:
        self._launch, self._number, self._arguments, self._log = launch, number, arguments, log
        self._model_dir = launch.model_dir(number)
        self._stopping = threading.Event()
        self._ended: int | BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        """Returns the run's exit status once it has ended.

        Raises:
            UserError: where a queued resource is another launch's.
        """
        if isinstance(self._ended, BaseException):
            raise self._ended
        return self._ended

    def stop(self) -> None:
        """Asks the run to save and end; a slice that is waited for is waited for no more."""
        self._stopping.set()

    def _run(self) -> None:
        try:
            self._ended = self._work()
        except Unavailable as error:
            self._say(str(error))
            print(f"t5lite: trial {self._number}: {error}", file=sys.stderr, flush=True)
            self._ended = UNAVAILABLE_EXIT
        except BaseException as error:
            self._ended = error

    def _work(self) -> int:
        if not self._has_slice():
            return RESTART_EXIT
        cuts = 0
        while not self._stopping.is_set() or open_attempt(self._model_dir) is not None:
            began, attempt = time.monotonic(), open_attempt(self._model_dir)
            if attempt is None:
                code = self._start()
            else:
                code = self._follow(f"bash ~/.t5lite/worker.sh attach {attempt}")
            if self._state() != "ACTIVE" or code == UNKNOWN_EXIT:
                # Preempted: the machines are gone, or they are others.
                self._say("the slice was preempted")
                close_attempt(self._model_dir, "preempted")
                return RESTART_EXIT
            if code in ENDS:
                close_attempt(self._model_dir, "killed")
                return ENDS[code]
            # The way to the workers was cut; the run goes on.
            cuts = cuts + 1 if time.monotonic() - began < LASTING_SECONDS else 0
            if cuts == gcloud.TRIES:
                raise Unavailable("its workers cannot be reached; see the log")
            self._stopping.wait(gcloud.poll_seconds())
        return RESTART_EXIT

    def _has_slice(self) -> bool:
        """Returns once the slice is there, or False where it is not wanted any more.

        Raises:
            Unavailable: where it cannot be had.
        """
        name, created = self._launch.trial_name(self._number), False
        while not self._stopping.is_set():
            state = self._state()
            if state == "ACTIVE":
                return True
            if state is None:
                close_attempt(self._model_dir, "preempted")
                self._say(f"creating {name}")
                try:
                    gcloud.ask(gcloud.create(self._launch, self._number), but="ALREADY_EXISTS")
                except UserError as error:
                    raise Unavailable(str(error)) from error
                created = True
            elif state == "FAILED" and created:
                raise Unavailable(
                    f"{name} cannot be had; gcloud compute tpus queued-resources describe says why"
                )
            elif state in ("SUSPENDED", "FAILED"):
                close_attempt(self._model_dir, "preempted")
                self._say(f"deleting what is {state.lower()}")
                gcloud.ask(gcloud.delete(self._launch, self._number), but="NOT_FOUND")
            self._stopping.wait(gcloud.poll_seconds())
        return False

    def _start(self) -> int:
        copied = self._stream(gcloud.copy(self._launch, self._number))
        if copied:
            # Whatever it is of scp's, it is no status of the run.
            return CUT
        if self._stopping.is_set():
            return RESTART_EXIT
        attempt = next_attempt(self._model_dir)
        return self._follow(gcloud.started(attempt, self._arguments))

    def _follow(self, command: str) -> int:
        return self._stream(gcloud.ssh(self._launch, self._number, command))

    def _stream(self, command: Sequence[str]) -> int:
        """Runs gcloud with its output into the log, for as long as there is a slice."""
        process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(gcloud.poll_seconds())
            if self._state() != "ACTIVE":
                # A machine that is gone does not hang up.
                os.killpg(process.pid, 9)
                process.wait()
                return CUT
            if self._stopping.is_set():
                # Again and again: the first time it may not have begun yet.
                with contextlib.suppress(UserError):
                    gcloud.halt(self._launch, self._number)

    def _state(self) -> str | None:
        """The slice's state; where Google does not answer it is waited for."""
        while True:
            try:
                return gcloud.states(self._launch).get(self._number)
            except UserError as error:
                if not gcloud.PASSING.search(str(error)):
                    raise
                self._say(str(error))
                time.sleep(gcloud.poll_seconds())

    def _say(self, text: str) -> None:
        self._log.write(f"t5lite: {text}\n".encode())

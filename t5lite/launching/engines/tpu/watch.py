"""One attempt at a trial: its slice, from creation to the end of the attempt, and its run on it."""

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
    STALLED_EXIT,
    UNAVAILABLE_EXIT,
    close_attempt,
    next_attempt,
    open_attempt,
)
from t5lite.launching.engines.tpu.cloud import slice_states, stop_run
from t5lite.launching.engines.tpu.gcloud import (
    MAX_CALLS,
    TRANSIENT_ERROR,
    GcloudCommands,
    call_gcloud,
    poll_seconds,
    start_on_worker,
)

# Exit status of worker.sh if it knows nothing of an attempt.
UNKNOWN_ATTEMPT_EXIT = 75
# Exit status of worker.sh after a run, and the run's own; 103 stands for all others.
RUN_EXITS = {
    0: 0,
    RESTART_EXIT: RESTART_EXIT,
    UNAVAILABLE_EXIT: UNAVAILABLE_EXIT,
    STALLED_EXIT: STALLED_EXIT,
    101: 1,
    102: 2,
    103: 137,
}
# Any other status is that of gcloud or ssh: the connection to a worker broke.
DISCONNECTED_EXIT = 255
# A connection that lasted this long was good.
LASTING_SECONDS = 60


class SliceAttempt:
    """One attempt at a trial, watched in a thread of its own."""

    def __init__(
        self, commands: GcloudCommands, number: int, arguments: Sequence[str], log: IO[bytes]
    ) -> None:
        self._commands = commands
        self._number = number
        self._arguments = arguments
        self._log_file = log
        self._model_dir = commands.launch.model_dir(number)
        self._stopping = threading.Event()
        self._ended: int | BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        """Returns the run's exit status once it has ended.

        Raises:
            UserError: if a queued resource belongs to another launch.
        """
        if isinstance(self._ended, BaseException):
            raise self._ended
        return self._ended

    def stop(self) -> None:
        """Asks the run to save and end, and stops waiting for a slice."""
        self._stopping.set()

    def _run(self) -> None:
        try:
            self._ended = self._attempt()
        except Unavailable as error:
            self._log(str(error))
            print(f"t5lite: trial {self._number}: {error}", file=sys.stderr, flush=True)
            self._ended = UNAVAILABLE_EXIT
        except BaseException as error:
            self._ended = error

    def _attempt(self) -> int:
        if not self._acquire_slice():
            return RESTART_EXIT
        cuts = 0
        while not self._stopping.is_set() or open_attempt(self._model_dir) is not None:
            began = time.monotonic()
            attempt = open_attempt(self._model_dir)
            if attempt is None:
                code = self._start()
            else:
                code = self._follow(f"bash ~/.t5lite/worker.sh attach {attempt}")
            if self._state() != "ACTIVE" or code == UNKNOWN_ATTEMPT_EXIT:
                # The machines are gone, or were replaced by others.
                self._log("the slice was preempted")
                close_attempt(self._model_dir, "preempted")
                return RESTART_EXIT
            if code in RUN_EXITS:
                close_attempt(self._model_dir, "killed")
                return RUN_EXITS[code]
            # The connection broke; the run continues.
            cuts = cuts + 1 if time.monotonic() - began < LASTING_SECONDS else 0
            if cuts == MAX_CALLS:
                raise Unavailable("the workers cannot be reached; see the log")
            self._stopping.wait(poll_seconds())
        return RESTART_EXIT

    def _acquire_slice(self) -> bool:
        """Returns True once the slice is active, or False if it is no longer wanted.

        Raises:
            Unavailable: if Google does not provide it.
        """
        name = self._commands.launch.trial_name(self._number)
        created = False
        while not self._stopping.is_set():
            state = self._state()
            if state == "ACTIVE":
                return True
            if state is None:
                close_attempt(self._model_dir, "preempted")
                self._log(f"creating {name}")
                try:
                    call_gcloud(self._commands.create(self._number), harmless="ALREADY_EXISTS")
                except UserError as error:
                    raise Unavailable(str(error)) from error
                created = True
            elif state == "FAILED" and created:
                raise Unavailable(
                    f"{name} failed; gcloud compute tpus queued-resources describe {name} says why"
                )
            elif state in ("SUSPENDED", "FAILED"):
                close_attempt(self._model_dir, "preempted")
                self._log(f"deleting {name}, which is {state.lower()}")
                call_gcloud(self._commands.delete(self._number), harmless="NOT_FOUND")
            self._stopping.wait(poll_seconds())
        return False

    def _start(self) -> int:
        if self._stream(self._commands.copy(self._number)):
            # A status of scp is not one of the run.
            return DISCONNECTED_EXIT
        if self._stopping.is_set():
            return RESTART_EXIT
        attempt = next_attempt(self._model_dir)
        return self._follow(start_on_worker(attempt, self._arguments))

    def _follow(self, command: str) -> int:
        return self._stream(self._commands.ssh(self._number, command))

    def _stream(self, command: Sequence[str]) -> int:
        """Runs gcloud with its output appended to the log, as long as the slice is active."""
        process = subprocess.Popen(
            command,
            stdout=self._log_file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(poll_seconds())
            if self._state() != "ACTIVE":
                # A machine that disappeared does not close its connections.
                os.killpg(process.pid, 9)
                process.wait()
                return DISCONNECTED_EXIT
            if self._stopping.is_set():
                # Repeated: the run may not have started the first time.
                with contextlib.suppress(UserError):
                    stop_run(self._commands, self._number)

    def _state(self) -> str | None:
        """Returns the slice's state, waiting through outages."""
        while True:
            try:
                return slice_states(self._commands).get(self._number)
            except UserError as error:
                if not TRANSIENT_ERROR.search(str(error)):
                    raise
                self._log(str(error))
                time.sleep(poll_seconds())

    def _log(self, text: str) -> None:
        self._log_file.write(f"t5lite: {text}\n".encode())

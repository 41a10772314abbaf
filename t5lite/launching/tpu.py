"""Trials on TPU slices of Google Cloud: a queued resource each, created, watched and deleted.

Whoever launches watches, as with `local`; but a run outlives its watcher, and who comes back goes
on watching it. What is preempted is deleted, created again and goes on from its checkpoint.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from t5lite.core.errors import Unavailable, UserError
from t5lite.core.run_directory import (
    RESTART_EXIT,
    UNAVAILABLE_EXIT,
    close_attempt,
    next_attempt,
    open_attempt,
)
from t5lite.launching.launch import Launch
from t5lite.launching.local import cancel_here
from t5lite.launching.outside import call
from t5lite.launching.shipping import CODE, check_files, pack
from t5lite.launching.slices import Slice, slice_of
from t5lite.launching.trial import Group

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
TRIES = 5
LASTING_SECONDS = 60
# As long as a checkpoint may take.
SAVE_SECONDS = 1800
# Errors that pass.
PASSING = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|ABORTED|Bad Gateway|per minute|did not answer|"
    r"onnection|[Tt]imed out|"
    r"Unable to find the server|name resolution"
)
NAME = re.compile(r"[a-z][-a-z0-9]{0,40}")


class Slices:
    """Queued resources as an engine."""

    restarts = attaches = True

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        # Before there are threads that need it.
        pack(launch)

    def start(self, number: int, arguments: Sequence[str], log: IO[bytes]) -> Group:
        """Creates the trial's slice where that is due, and starts or goes on watching its run."""
        return _Watch(self._launch, number, arguments, log)

    def end(self, number: int) -> None:
        """Deletes the trial's slice, behind a checkpoint where its run goes on."""
        give_back(self._launch, [number])


def slice_for(launch: Launch) -> Slice:
    """Returns the slice that `--on=tpu:NAME` asks for.

    Raises:
        UserError: where it cannot be had as a queued resource, or the launch cannot be one's name.
    """
    wanted = slice_of(launch.engine.partition(":")[2])
    if wanted.runtime is None:
        raise UserError(
            f"{wanted.accelerator} is to be had on GKE only: --on=gke:{wanted.accelerator}"
        )
    if not launch.resources.get("zone"):
        raise UserError("--on=tpu needs --zone, such as us-east5-a")
    if not NAME.fullmatch(launch.name):
        raise UserError(
            "--name of a launch on TPUs must be up to 41 lower-case letters, digits and hyphens, "
            f"a letter first, got {launch.name!r}"
        )
    return wanted


def check(launch: Launch, numbers: Sequence[int]) -> str:
    """Looks whether all that would be called can be, creates nothing, and returns "".

    Raises:
        UserError: where gcloud would refuse a command, knows no login or project, or a queued
            resource of that name is another's.
    """
    slice_for(launch)
    check_files(launch)
    _states(launch)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        lines = [shlex.join(command) for command in commands(launch, numbers[0])]
        json.dump([{"command_string": line} for line in lines], file)
        file.flush()
        try:
            found = json.loads(
                call(["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file.name}"])
            )
        except UserError:
            # Google does not promise to keep this command.
            return ""
    for one in found:
        # What it cannot read, as a "#", is no mistake of the command's.
        if not one["success"] and one["error_type"] != "CommandValidationError":
            reason = one["error_message"].splitlines()[0].strip()
            raise UserError(f"gcloud would refuse {one['command_string']}: {reason}")
    return ""


def text(launch: Launch, numbers: Sequence[int]) -> str:
    """Returns the gcloud commands of the first trial, as a shell takes them."""
    more = f"\n# and so on for {len(numbers) - 1} more" if len(numbers) > 1 else ""
    return "\n".join(shlex.join(c) for c in commands(launch, numbers[0])) + more


def commands(launch: Launch, number: int) -> list[list[str]]:
    """Returns what is called for a trial that nothing happens to, in order."""
    rows = launch.rows
    arguments = launch.arguments(number, rows[number] if number < len(rows) else {})
    attempt = next_attempt(launch.model_dir(number))
    return [
        _create(launch, number),
        _gcloud(launch, "queued-resources", "describe", launch.trial_name(number), "--format=json"),
        _copy(launch, number),
        _ssh(launch, number, _started(attempt, arguments)),
        _delete(launch, number),
    ]


def active(launch: Launch) -> dict[int, str]:
    """Returns the trials that have a queued resource, and its state."""
    states = _states(launch)
    return {number: state.lower().replace("_", " ") for number, state in states.items()}


def cancel(launch: Launch) -> str:
    """Asks the launcher to stop, or the runs that nobody watches, and tells of it.

    All of them save and end, and their slices are deleted.
    """
    if cancel_here(pathlib.Path(launch.folder)):
        return "asked to save and stop"
    deleted = give_back(launch, list(_states(launch)))
    return f"deleted {', '.join(deleted)}" if deleted else "has no slice"


def give_back(launch: Launch, numbers: Sequence[int]) -> list[str]:
    """Deletes what slices there are of some trials, and returns their names.

    Raises:
        Unavailable: where one cannot be deleted, once the others are.
    """
    states, deleted, left = _states(launch), [], []
    for number in numbers:
        state, name = states.get(number), launch.trial_name(number)
        if state is None:
            continue
        try:
            if state == "ACTIVE" and open_attempt(launch.model_dir(number)) is not None:
                _halt(launch, number)
            _ask(_delete(launch, number), but="NOT_FOUND")
            deleted.append(name)
        except UserError as error:
            left.append(f"{name} ({error})")
    if left:
        raise Unavailable(
            f"slices that are still there, and cost money: {', '.join(left)}; t5lite launch cancel "
            f"{launch.reference} tries again"
        )
    return deleted


def _halt(launch: Launch, number: int) -> None:
    """Asks a run to save and end, and waits for that."""
    call(_ssh(launch, number, "bash ~/.t5lite/worker.sh stop"), seconds=SAVE_SECONDS)


class _Watch:
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
            if cuts == TRIES:
                raise Unavailable("its workers cannot be reached; see the log")
            self._stopping.wait(poll_seconds())
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
                    _ask(_create(self._launch, self._number), but="ALREADY_EXISTS")
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
                _ask(_delete(self._launch, self._number), but="NOT_FOUND")
            self._stopping.wait(poll_seconds())
        return False

    def _start(self) -> int:
        copied = self._stream(_copy(self._launch, self._number))
        if copied:
            # Whatever it is of scp's, it is no status of the run.
            return CUT
        if self._stopping.is_set():
            return RESTART_EXIT
        attempt = next_attempt(self._model_dir)
        return self._follow(_started(attempt, self._arguments))

    def _follow(self, command: str) -> int:
        return self._stream(_ssh(self._launch, self._number, command))

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
                return process.wait(poll_seconds())
            if self._state() != "ACTIVE":
                # A machine that is gone does not hang up.
                os.killpg(process.pid, 9)
                process.wait()
                return CUT
            if self._stopping.is_set():
                # Again and again: the first time it may not have begun yet.
                with contextlib.suppress(UserError):
                    _halt(self._launch, self._number)

    def _state(self) -> str | None:
        """The slice's state; where Google does not answer it is waited for."""
        while True:
            try:
                return _states(self._launch).get(self._number)
            except UserError as error:
                if not PASSING.search(str(error)):
                    raise
                self._say(str(error))
                time.sleep(poll_seconds())

    def _say(self, text: str) -> None:
        self._log.write(f"t5lite: {text}\n".encode())


def poll_seconds() -> float:
    """How often Google is asked: T5LITE_POLL_SECONDS, or 30."""
    return float(os.environ.get("T5LITE_POLL_SECONDS") or 30)


def _ask(command: Sequence[str], *, but: str | None = None) -> str:
    """Calls gcloud, again where only the way to Google is cut: a week's sweep outlives that.

    Args:
        but: what it may say that is no error: an answer that was lost may have come before it.
    """
    for left in reversed(range(TRIES)):
        try:
            return call(command)
        except UserError as error:
            if but is not None and but in str(error):
                return ""
            if not left or not PASSING.search(str(error)):
                raise
            time.sleep(poll_seconds())
    raise AssertionError


def _states(launch: Launch) -> dict[int, str]:
    """The state of every queued resource of the launch, by trial.

    Raises:
        UserError: where one of that name is another launch's.
    """
    listed = _ask(_gcloud(launch, "queued-resources", "list", "--format=json"))
    found = {}
    pattern = re.compile(rf"{re.escape(launch.name)}-(\d{{4,}})")
    for resource in json.loads(listed):
        name = resource["name"].rpartition("/")[2]
        match = pattern.fullmatch(name)
        if match is None:
            continue
        nodes: list[dict[str, Any]] = resource.get("tpu", {}).get("nodeSpec", [])
        owners = {node.get("node", {}).get("labels", {}).get("t5lite") for node in nodes}
        if nodes and owners != {_owner(launch)}:
            raise UserError(
                f"the queued resource {name} is there and belongs to another launch: use another "
                "--name"
            )
        found[int(match[1])] = resource.get("state", {}).get("state", "ACCEPTED")
    return found


def _owner(launch: Launch) -> str:
    return hashlib.sha256(launch.folder.encode()).hexdigest()[:16]


def _gcloud(launch: Launch, group: str, action: str, *words: str) -> list[str]:
    given = launch.resources
    where = [f"--{name}={given[name]}" for name in ("zone", "project") if given.get(name)]
    return ["gcloud", "compute", "tpus", group, action, *words, *where, "--quiet"]


def _create(launch: Launch, number: int) -> list[str]:
    wanted, given, name = slice_for(launch), launch.resources, launch.trial_name(number)
    slices = int(given.get("slices") or 1)
    nodes = [f"--node-count={slices}", f"--node-prefix={name}"]
    kinds = [f"--{kind}" for kind in ("spot", "reserved") if given.get(kind)]
    return _gcloud(
        launch,
        *("queued-resources", "create", name, f"--accelerator-type={wanted.accelerator}"),
        f"--runtime-version={given.get('runtime_version') or wanted.runtime}",
        *(nodes if slices > 1 else [f"--node-id={name}"]),
        *(*kinds, f"--labels=t5lite={_owner(launch)}", *(given.get("options") or ())),
    )


def _delete(launch: Launch, number: int) -> list[str]:
    name = launch.trial_name(number)
    return _gcloud(launch, "queued-resources", "delete", name, "--force", "--async")


def _workers(launch: Launch) -> tuple[str, list[str]]:
    """By which commands all workers are reached."""
    several = int(launch.resources.get("slices") or 1) > 1
    own = list(launch.resources.get("ssh_options") or ())
    group = "queued-resources" if several else "tpu-vm"
    return group, [*(["--node=all"] if several else []), "--worker=all", *own]


def _copy(launch: Launch, number: int) -> list[str]:
    group, workers = _workers(launch)
    workers = [word for word in workers if not word.startswith("--ssh-flag")]
    code = str(pathlib.Path(launch.folder) / CODE)
    return _gcloud(
        launch, group, "scp", code, f"{launch.trial_name(number)}:t5lite.tar.gz", *workers
    )


def _ssh(launch: Launch, number: int, command: str) -> list[str]:
    group, workers = _workers(launch)
    # Or a connection that was lost on the way would be waited on for hours.
    alive = "--ssh-flag=-oServerAliveInterval=30"
    name = launch.trial_name(number)
    return _gcloud(launch, group, "ssh", name, f"--command={command}", alive, *workers)


def _started(attempt: int, arguments: Sequence[str]) -> str:
    """The command that a worker starts an attempt with."""
    # Failing ends with 1: tar's own 2 would pass for a mistake of the user's.
    unpack = "mkdir -p ~/.t5lite && tar -xzf ~/t5lite.tar.gz -C ~/.t5lite || exit 1"
    return f"{unpack}; bash ~/.t5lite/worker.sh start {attempt} {shlex.join(arguments)}"

"""Trials as processes of this machine, some at a time."""

import contextlib
import os
import pathlib
import queue
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from t5lite.core.errors import UserError
from t5lite.core.locks import hold_lock, lock_holder
from t5lite.launching.launch import LOCK, Launch
from t5lite.launching.sweeps.study import Study
from t5lite.launching.trial import Engine, Group, Processes, run_trial

Tell = Callable[[int, str], None]


class Here:
    """Processes of this machine as an engine."""

    restarts, attaches = True, False

    def __init__(self, launch: Launch) -> None:
        self._count = int(launch.resources.get("processes") or 1)

    def start(self, number: int, arguments: Sequence[str], log: IO[bytes]) -> Group:
        """Starts a trial's processes."""
        del number
        child = [sys.executable, "-m", "t5lite.launching.child", str(os.getpid())]
        command = [*child, *arguments]
        return Processes([(command, each) for each in environments(self._count)], log)

    def end(self, number: int) -> None:
        """There is nothing to give back."""


def run_here(
    launch: Launch,
    study: Study,
    numbers: Sequence[int],
    engine: Engine,
    tell: Tell,
    stopping: threading.Event,
) -> dict[int, str]:
    """Runs trials, `launch.parallel` at a time, and returns how each of them ended.

    Args:
        engine: where they run; what watches them is here.
        tell: called with a trial's number and "started", or how it ended.
        stopping: once set, those that run are asked to save, and no other begins.

    Raises:
        UserError: where the objective is no metric of the run.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in numbers:
        waiting.put(number)
    ended: dict[int, str] = {}
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not stopping.is_set():
                number = waiting.get_nowait()
                tell(number, "started")
                try:
                    ended[number] = run_trial(launch, study, number, engine, stopping)
                finally:
                    engine.end(number)
                tell(number, ended[number])
        except queue.Empty:
            return
        except BaseException as error:
            errors.append(error)
            stopping.set()

    threads = [threading.Thread(target=work) for _ in range(launch.parallel or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        # In turns: a signal is handled between them.
        while thread.is_alive():
            thread.join(0.2)
    if errors:
        raise errors[0]
    return ended


def environments(count: int) -> list[dict[str, str]]:
    """Returns what tells each of `count` processes of one JAX program who it is."""
    if count == 1:
        # Alone, whatever the launcher itself is part of.
        return [{"JAX_NUM_PROCESSES": "1"}]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        for index in range(count)
    ]


def check(launch: Launch, numbers: Sequence[int]) -> str:
    """Returns "": there is nobody to ask."""
    del launch, numbers
    return ""


def text(launch: Launch, numbers: Sequence[int]) -> str:
    """Returns the trials' commands."""
    rows = launch.rows or [{}]
    return "\n".join(
        shlex.join(["t5lite", *launch.arguments(number, rows[number])])
        if number < len(rows)
        else f"t5lite {launch.command} ... # trial {number} is chosen by those before it"
        for number in numbers
    )


def active(launch: Launch) -> dict[int, str]:
    """Nobody else has trials of it."""
    del launch
    return {}


def cancel(launch: Launch) -> str:
    """Asks the launcher to stop, and tells of it."""
    asked = cancel_here(pathlib.Path(launch.folder))
    return "asked to save and stop" if asked else "does not run"


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from running or submitting a launch; it goes with the process."""
    name = folder.name
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(
        folder / LOCK,
        lambda who: (
            f"{name} is being run by process {who}; look at it with `t5lite launch status "
            f"{name}`, end it with `t5lite launch cancel {name}`"
        ),
    ):
        yield


def cancel_here(folder: pathlib.Path) -> bool:
    """Asks the launcher of a folder to stop, and returns whether there is one on this machine."""
    holder = lock_holder(folder / LOCK)
    if holder is None:
        return False
    pid, _, host = holder.partition(" on ")
    if not pid.isdigit():
        raise UserError(f"{folder.name} is just being started: cancel it again")
    if host != socket.gethostname():
        raise UserError(f"{folder.name} runs on {host}: cancel it there")
    os.kill(int(pid), signal.SIGTERM)
    return True

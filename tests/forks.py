"""Commands of t5lite as forks of a process that has imported the package, which saves seconds each.

A fork is made before JAX has a backend or a thread, so each command is a process as any other: it
may be killed, and starts its own data workers. `python -m tests.forks` is the server.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
# What training imports when it needs it.
IMPORTED = (
    "t5lite.cli.train",
    "t5lite.cli.launch",
    "t5lite.cli.new_launch",
    "t5lite.cli.vectorized",
    "tensorflow_datasets.core.features",
    "tensorflow_datasets.core.reader",
    "tensorboardX.proto.event_pb2",
    "tensorboardX.record_writer",
    "tensorboardX.summary",
)
# Of a command; a hang is a fault as any other.
TIMEOUT_SECONDS = 300.0


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit status, or minus the signal that ended it, and output."""

    status: int
    out: str
    err: str
    seconds: float


class ForkServer:
    """Runs commands one after the other; close it.

    Args:
        folder: for outputs.
        environment: of the server and all commands; it may preload a library.
    """

    def __init__(self, folder: pathlib.Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, environment: Mapping[str, str] | None = None) -> Ended:
        """Runs `t5lite ARGUMENTS`."""
        return self.run_together([(arguments, environment or {})])[0]

    def run_together(
        self, commands: Sequence[tuple[Sequence[object], Mapping[str, str]]]
    ) -> list[Ended]:
        """Runs commands at once; when a signal ends one of them, the others are killed.

        A command that takes longer than `TIMEOUT_SECONDS` prints its stacks and is killed by
        SIGALRM.
        """
        jobs = [
            {
                "arguments": [str(word) for word in arguments],
                "environment": dict(environment),
                "output": str(self._folder / f"output_{index}"),
            }
            for index, (arguments, environment) in enumerate(commands)
        ]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return [
            Ended(
                status,
                pathlib.Path(f"{job['output']}.out").read_text(),
                pathlib.Path(f"{job['output']}.err").read_text(),
                seconds,
            )
            for job, (status, seconds) in zip(jobs, answer, strict=True)
        ]

    def close(self) -> None:
        """Ends the server."""
        # Also closes both pipes; without input the server ends.
        self._process.communicate()


def _serve() -> None:
    _import_everything()
    for line in sys.stdin:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(_run_jobs(json.loads(line))), flush=True)


def _import_everything() -> None:
    """Imports what training needs; none of it may initialize a backend."""
    from jax._src import xla_bridge

    for name in IMPORTED:
        importlib.import_module(name)
    assert not xla_bridge.backends_are_initialized()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"


def _run_jobs(jobs: list[dict[str, Any]]) -> list[tuple[int, float]]:
    started = time.monotonic()
    running = {_fork(job): index for index, job in enumerate(jobs)}
    children = list(running)
    ended: dict[int, tuple[int, float]] = {}
    overdue = False
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        seconds = time.monotonic() - started
        if child:
            code = os.waitstatus_to_exitcode(status)
            ended[running.pop(child)] = (code, seconds)
            # A data worker would otherwise outlive the command that a signal ended.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            if code < 0:
                _signal_all(running, signal.SIGKILL)
        elif seconds > TIMEOUT_SECONDS + 5:
            _signal_all(running, signal.SIGALRM)
        elif seconds > TIMEOUT_SECONDS and not overdue:
            _signal_all(running, signal.SIGUSR1)
            overdue = True
        else:
            time.sleep(0.002)
    return [ended[index] for index in range(len(children))]


def _signal_all(children: Mapping[int, int], number: int) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)


def _fork(job: Mapping[str, Any]) -> int:
    sys.stdout.flush()
    with warnings.catch_warnings():
        # JAX warns that it may have threads.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        return child
    os.setsid()
    os.environ.update(job["environment"])
    for number, path in enumerate((os.devnull, f"{job['output']}.out", f"{job['output']}.err")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        file = os.open(path, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    faulthandler.register(signal.SIGUSR1)
    # As in a terminal: shells start background commands with SIGINT ignored, which is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["t5lite", *job["arguments"]]
    # Of `faults.c`, if that is preloaded.
    if arm := getattr(ctypes.CDLL(None), "faults_arm", None):
        arm()
    from t5lite.cli.main import main

    main(job["arguments"])
    sys.exit(0)


if __name__ == "__main__":
    _serve()

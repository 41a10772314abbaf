"""Processes of this machine that run one attempt at a trial."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Protocol, runtime_checkable

from t5lite.core.run_directory import RESTART_EXIT

# Exit statuses of a process that was asked to stop and did.
STOPPED_EXITS = (RESTART_EXIT, -signal.SIGTERM, 128 + signal.SIGTERM)


@runtime_checkable
class ProcessGroup(Protocol):
    """The processes of one attempt at a trial, which start and end together."""

    def poll(self) -> int | None:
        """Returns the exit status once all have ended; None before."""

    def stop(self) -> None:
        """Asks all of them to save and end."""


class LocalProcesses:
    """Commands on this machine that work as one: if one fails, the others are killed."""

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
                # Ctrl-C reaches the launcher only, which asks each process once.
                start_new_session=True,
            )
            for command, environment in commands
        ]

    def poll(self) -> int | None:
        """Returns the first status that is not 0, or 0, once all have ended."""
        codes = [process.poll() for process in self._processes]
        bad = [code for code in codes if code not in (None, 0, *STOPPED_EXITS)]
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


def t5lite_command(arguments: Sequence[str], *, parent: int = 0) -> list[str]:
    """Returns the command that runs `t5lite ARGUMENTS` with this Python and this copy of t5lite.

    Args:
        parent: a process whose end also ends the command; 0 for none.
    """
    script = pathlib.Path(__file__).with_name("child.py").resolve()
    return [sys.executable, "-P", str(script), str(parent), *arguments]


def process_environments(count: int) -> list[dict[str, str]]:
    """Returns the environment variables that make `count` local processes one JAX program."""
    if count == 1:
        # A single process, even if the launcher itself is one of several.
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

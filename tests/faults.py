"""Makes the k-th call of a process that touches files under a directory fail, or kills it there.

`faults.c` is preloaded into any process, so the calls of C++ libraries, of data workers and of
other children count too, in the order in which they happen. It needs Linux and `cc`. With strace,
each thread would count for itself, and only single files could be selected.
"""

import dataclasses
import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

SOURCE = pathlib.Path(__file__).with_suffix(".c")
# Calls that change files, and so all points at which a kill can leave different files behind.
CHANGES = ("create", "write", "sync", "rename", "remove")
needs_preload = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="Linux and a C compiler needed"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A call that fails, or at which a process gets a signal.

    Args:
        under: the directory, or file, whose calls count.
        calls: kinds of calls that count: "create" (files, directories and links), "write" (and
            truncation), "sync", "rename", "remove", "read" (and opening), and "network" (of
            sockets, whatever `under` is).
        at: number of the call, counted from 1; 0 only counts.
        then: a signal such as "SIGKILL", sent before the call, or an error such as "ENOSPC".
        lasting: whether all later calls fail too, as on a full disk.
        torn: whether half of the data of a write that fails, or kills, is written before.
        delay: seconds between the call and the signal.
    """

    under: pathlib.Path
    calls: Sequence[str] = CHANGES
    at: int = 0
    then: str = "SIGKILL"
    lasting: bool = False
    torn: bool = False
    delay: float = 0.0

    def environment(self, log: pathlib.Path) -> dict[str, str]:
        """Returns the variables that a preloaded process reads; `log` gets a line for each call."""
        is_signal = self.then.startswith("SIG")
        number = -getattr(signal, self.then) if is_signal else getattr(errno, self.then)
        log.write_bytes(b"")
        pathlib.Path(f"{log}.count").write_bytes(bytes(8))
        return {
            "FAULTS_LOG": str(log),
            "FAULTS_UNDER": str(self.under.resolve()),
            "FAULTS_CALLS": ",".join(self.calls),
            "FAULTS_AT": str(self.at),
            "FAULTS_THEN": str(number),
            "FAULTS_LASTING": str(int(self.lasting)),
            "FAULTS_TORN": str(int(self.torn)),
            "FAULTS_DELAY": str(round(self.delay * 1e6)),
        }


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that was counted, at a time of `time.monotonic`."""

    number: int
    seconds: float
    kind: str
    function: str
    process: int
    path: str


def calls_in(log: pathlib.Path) -> list[Call]:
    """Returns the counted calls in order."""
    found = []
    for line in log.read_text().splitlines():
        number, seconds, kind, function, process, path = line.split(" ", 5)
        found.append(Call(int(number), float(seconds), kind, function, int(process), path))
    return sorted(found, key=lambda call: call.number)


def build_library(folder: pathlib.Path) -> None:
    """Compiles `faults.so` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", folder / "faults.so", SOURCE]
    subprocess.run([*command, "-ldl", "-pthread"], check=True)


def preloaded(folder: pathlib.Path) -> dict[str, str]:
    """Returns the variable that loads the library of a folder into a process.

    Without the variables of a fault, or `{"FAULTS_LOG": ""}`, it does nothing.
    """
    others = os.environ.get("LD_PRELOAD", "")
    return {"LD_PRELOAD": f"{folder / 'faults.so'} {others}".strip()}

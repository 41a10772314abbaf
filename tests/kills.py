"""Training commands with faults, and whether their runs resume as if nothing had happened."""

import dataclasses
import pathlib
import re
import socket
import threading
from collections.abc import Sequence
from typing import Any

from tests.equal_runs import content_of, differences
from tests.faults import CHANGES, Call, Fault, calls_in
from tests.forks import Ended, ForkServer

# Batches after the last checkpoint that are compared.
NEXT_BATCHES = 50
_WARNING = re.compile(r"TensorBoard failed and writes nothing more|^building data set")
# gin has one configuration a process.
_READING = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A command whose runs are killed.

    Args:
        run_file: of `t5lite train`.
        flags: that follow.
        processes: that train together.
        sweep: of `t5lite launch --vectorized`; "" trains one run.
    """

    run_file: str
    flags: Sequence[str] = ()
    processes: int = 1
    sweep: str = ""

    def arguments(self, folder: pathlib.Path) -> list[str]:
        """Returns the command that writes into `folder`, and resumes from it."""
        flags = (f"--gin_file={self.run_file}", *self.flags)
        if not self.sweep:
            return ["train", *flags, f"--gin.MODEL_DIR={folder}"]
        launch = ("launch", "--on=local", f"--name={folder.name}", f"--dir={folder.parent}")
        return [*launch, "--vectorized=2", f"--sweep={self.sweep}", "--", *flags]

    def model_dirs(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Returns the MODEL_DIRs of the command in order."""
        return sorted((folder / "trials").iterdir()) if self.sweep else [folder]


class Bench:
    """Runs the commands of a setting in folders below `folder`."""

    def __init__(self, setting: Setting, server: ForkServer, folder: pathlib.Path) -> None:
        self.setting = setting
        self.log = folder / "calls"
        self._server = server
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def attempt(self, folder: pathlib.Path, fault: Fault | None = None) -> list[Ended]:
        """Runs the command once, and returns the end of each of its processes."""
        environment = {} if fault is None else fault.environment(self.log)
        count = self.setting.processes
        together = {}
        if count > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                address = f"localhost:{free.getsockname()[1]}"
            together = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
        return self._server.run_together(
            [
                (
                    self.setting.arguments(folder),
                    environment | together | ({"JAX_PROCESS_ID": str(n)} if count > 1 else {}),
                )
                for n in range(count)
            ]
        )

    def whole(self) -> tuple[list[Any], list[Call]]:
        """Returns what an uninterrupted run records, and the changes of its files in order."""
        folder = self._folder / "whole"
        (ended, *_) = self.attempt(folder, Fault(under=folder, calls=CHANGES))
        if ended.status:
            raise AssertionError(ended.err)
        return self.content(folder), calls_in(self.log)

    def content(self, folder: pathlib.Path) -> list[Any]:
        """Returns what is recorded of each run of the command."""
        with _READING:
            return [content_of(d, batches=NEXT_BATCHES) for d in self.setting.model_dirs(folder)]

    def resume(self, folder: pathlib.Path, wanted: list[Any], *, views: bool = True) -> list[str]:
        """Runs the command without faults, and returns what differs from an uninterrupted run.

        Args:
            views: whether TensorBoard must show the same; a run continues without it if its file
                cannot be written.
        """
        for ended in self.attempt(folder):
            if ended.status:
                return [f"status {ended.status}: {ended.err}"]
        found = self.content(folder)
        for mine, other in zip(found, wanted, strict=True):
            if not views:
                mine["events"] = other["events"]
            # A kill before the deletion of an earlier checkpoint keeps it, whole, until the next.
            latest = max(map(int, other["checkpoints"]))
            for step in mine["checkpoints"].keys() - other["checkpoints"].keys():
                if int(step) < latest:
                    del mine["checkpoints"][step]
        return differences(found, wanted)


def dropped_views(ended: Ended) -> bool:
    """Whether a command continued without TensorBoard, and said so."""
    return "TensorBoard failed and writes nothing more" in ended.err


def complaints(ended: Ended) -> list[str]:
    """Returns what is wrong with the way in which a command ended after an error of a file.

    It may finish if it could do without the file; else it says why on one line.
    """
    printed = [line for line in ended.err.splitlines() if not _WARNING.search(line)]
    lines = [line for line in printed if line.startswith("t5lite: ")]
    others = [line for line in printed if line not in lines]
    if ended.status == 0:
        return others
    found = [] if ended.status in (2, 69) else [f"status {ended.status}"]
    found += [] if len(lines) == 1 else [f"{len(lines)} lines of errors"]
    return found + [f"printed {len(others)} other lines: {others[-1]}" for _ in others[:1]]

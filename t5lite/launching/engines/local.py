"""Trials as processes of this machine, several at a time."""

import os
from collections.abc import Sequence
from typing import IO

from t5lite.core.errors import UserError
from t5lite.launching.engines.resources import Resources, resource, resources
from t5lite.launching.engines.watching import WatchingEngine
from t5lite.launching.launch import Launch
from t5lite.launching.processes import (
    LocalProcesses,
    ProcessGroup,
    process_environments,
    t5lite_command,
)


@resources
class LocalResources(Resources):
    """What a trial gets on this machine."""

    processes: int | None = resource("JAX processes of each trial; 1 if not given.")


class LocalEngine(WatchingEngine):
    """Starts trials on this machine; they stop when their launcher dies.

    Raises:
        UserError: for a target, or for `--processes` with `--vectorized`.
    """

    resources_type = LocalResources
    vectorizes = True

    def __init__(self, launch: Launch, target: str, resources: LocalResources) -> None:
        super().__init__(launch, target, resources)
        if target:
            raise UserError(f"--on=local takes nothing after its name, got {launch.engine!r}")
        if launch.vectorized and resources.processes:
            raise UserError("--vectorized and --processes are mutually exclusive")

    def start(self, number: int, arguments: Sequence[str], log: IO[bytes]) -> ProcessGroup:
        """Starts the processes of an attempt."""
        del number
        command = t5lite_command(arguments, parent=os.getpid())
        environments = process_environments(self.resources.processes or 1)
        return LocalProcesses([(command, each) for each in environments], log)

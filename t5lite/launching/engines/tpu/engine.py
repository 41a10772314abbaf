"""The engine of Cloud TPU: a queued resource for each trial, created, watched and deleted.

The launcher watches, as with `local`, but a run outlives its launcher, and `resume` continues to
watch it. A preempted slice is deleted and created again, and the run resumes from its checkpoint.
"""

import json
import pathlib
import shlex
import tempfile
from collections.abc import Sequence
from typing import IO

from t5lite.core.errors import UserError, shown
from t5lite.core.records import ANYTHING, TEXT, Schema, list_of, or_null
from t5lite.launching.engines.engine import OnState, Submission
from t5lite.launching.engines.programs import call_program, decode_output
from t5lite.launching.engines.shipping import (
    check_shipped_files,
    check_wheel,
    pack_code,
    setup_script,
)
from t5lite.launching.engines.tpu.cloud import delete_slices, slice_states
from t5lite.launching.engines.tpu.gcloud import GcloudCommands, TpuResources
from t5lite.launching.engines.tpu.watch import SliceAttempt
from t5lite.launching.engines.watching import WatchingEngine
from t5lite.launching.launch import Launch
from t5lite.launching.launcher_lock import signal_launcher
from t5lite.launching.processes import ProcessGroup
from t5lite.launching.sweeps.trial_store import TrialStore

# What gcloud's linter prints for each command.
_FINDINGS = list_of(
    Schema(
        required={"success": ANYTHING},
        # null for a command that is right.
        optional=dict.fromkeys(("error_type", "error_message"), or_null(TEXT))
        | {"command_string": TEXT},
    ).kind
)


class TpuEngine(WatchingEngine):
    """Creates queued resources with gcloud and runs trials on their workers by ssh."""

    resources_type = TpuResources
    packs_files = True
    attaches = True

    def __init__(self, launch: Launch, target: str, resources: TpuResources) -> None:
        super().__init__(launch, target, resources)
        self._commands = GcloudCommands(launch, target, resources)

    def check(self, numbers: Sequence[int]) -> str:
        """Validates all commands without creating anything; returns a remark if gcloud cannot.

        Raises:
            UserError: if gcloud would reject a command, has no login or project, or a queued
                resource of the launch's name belongs to another launch.
        """
        self._commands.wanted_slice()
        self._setup_script()
        check_shipped_files(self.launch)
        check_wheel(self.launch, self.resources.wheel)
        slice_states(self._commands)
        return _lint(self._commands.whole_attempt(numbers[0]))

    def render(self, numbers: Sequence[int]) -> str:
        """Returns the gcloud commands of the first trial as shell lines."""
        more = f"\n# and the same for {len(numbers) - 1} more" if len(numbers) > 1 else ""
        commands = self._commands.whole_attempt(numbers[0])
        return "\n".join(shlex.join(command) for command in commands) + more

    def submit(self, store: TrialStore, numbers: Sequence[int], on_state: OnState) -> Submission:
        """Packs the code, then runs and watches the trials to their end."""
        # Before any thread needs it.
        pack_code(self.launch, setup=self._setup_script(), wheel=self.resources.wheel)
        return super().submit(store, numbers, on_state)

    def start(self, number: int, arguments: Sequence[str], log: IO[bytes]) -> ProcessGroup:
        """Creates the trial's slice if there is none, and starts its run or resumes watching it."""
        return SliceAttempt(self._commands, number, arguments, log)

    def active(self) -> dict[int, str]:
        """Returns the trials that have a queued resource, and its state."""
        states = slice_states(self._commands)
        return {number: state.lower().replace("_", " ") for number, state in states.items()}

    def cancel(self) -> str:
        """Asks the launcher, or unwatched runs, to save and stop; their slices are deleted."""
        if signal_launcher(pathlib.Path(self.launch.folder)):
            return "asked to save and stop"
        deleted = delete_slices(self._commands, list(slice_states(self._commands)))
        return f"deleted {', '.join(deleted)}" if deleted else "has no slice"

    def release(self, numbers: Sequence[int]) -> None:
        """Deletes the slices of trials that have ended, after their runs have saved."""
        delete_slices(self._commands, numbers)

    def _setup_script(self) -> pathlib.Path:
        return setup_script(self.launch, self.resources.setup, "setup.sh")


def _lint(commands: Sequence[Sequence[str]]) -> str:
    """Raises a UserError for the first command that gcloud's parser rejects.

    Returns:
        A remark if gcloud has no such parser, which Google does not promise to keep; else "".
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([{"command_string": shlex.join(command)} for command in commands], file)
        file.flush()
        try:
            output = call_program(
                ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file.name}"]
            )
            found = decode_output("gcloud", output, _FINDINGS)
        except UserError as error:
            return f"gcloud's linter failed, so its commands are not checked: {error}"
    for one in found:
        # Text that the linter cannot parse, such as "#", is no mistake of the command.
        if not one["success"] and one.get("error_type") != "CommandValidationError":
            reason = shown((one.get("error_message") or "").partition("\n")[0].strip())
            raise UserError(f"gcloud would reject {one.get('command_string')}: {reason}")
    return ""

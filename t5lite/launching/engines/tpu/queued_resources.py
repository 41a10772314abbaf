"""Trials on TPU slices of Google Cloud: a queued resource each, created, watched and deleted.

Whoever launches watches, as with `local`; but a run outlives its watcher, and who comes back goes
on watching it. What is preempted is deleted, created again and goes on from its checkpoint.
"""

import json
import pathlib
import shlex
import tempfile
from collections.abc import Sequence
from typing import IO

from t5lite.core.errors import Unavailable, UserError
from t5lite.core.run_directory import open_attempt
from t5lite.launching.engines.local import cancel_here
from t5lite.launching.engines.outside import call
from t5lite.launching.engines.shipping import check_files, pack
from t5lite.launching.engines.tpu import gcloud
from t5lite.launching.engines.tpu.watch import Watch
from t5lite.launching.launch import Launch
from t5lite.launching.trial import Group


class Slices:
    """Queued resources as an engine."""

    restarts = attaches = True

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        # Before there are threads that need it.
        pack(launch)

    def start(self, number: int, arguments: Sequence[str], log: IO[bytes]) -> Group:
        """Creates the trial's slice where that is due, and starts or goes on watching its run."""
        return Watch(self._launch, number, arguments, log)

    def end(self, number: int) -> None:
        """Deletes the trial's slice, behind a checkpoint where its run goes on."""
        give_back(self._launch, [number])


def check(launch: Launch, numbers: Sequence[int]) -> str:
    """Looks whether all that would be called can be, creates nothing, and returns "".

    Raises:
        UserError: where gcloud would refuse a command, knows no login or project, or a queued
            resource of that name is another's.
    """
    gcloud.slice_for(launch)
    check_files(launch)
    gcloud.states(launch)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        lines = [shlex.join(command) for command in gcloud.commands(launch, numbers[0])]
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
    return "\n".join(shlex.join(c) for c in gcloud.commands(launch, numbers[0])) + more


def active(launch: Launch) -> dict[int, str]:
    """Returns the trials that have a queued resource, and its state."""
    states = gcloud.states(launch)
    return {number: state.lower().replace("_", " ") for number, state in states.items()}


def cancel(launch: Launch) -> str:
    """Asks the launcher to stop, or the runs that nobody watches, and tells of it.

    All of them save and end, and their slices are deleted.
    """
    if cancel_here(pathlib.Path(launch.folder)):
        return "asked to save and stop"
    deleted = give_back(launch, list(gcloud.states(launch)))
    return f"deleted {', '.join(deleted)}" if deleted else "has no slice"


def give_back(launch: Launch, numbers: Sequence[int]) -> list[str]:
    """Deletes what slices there are of some trials, and returns their names.

    Raises:
        Unavailable: where one cannot be deleted, once the others are.
    """
    states, deleted, left = gcloud.states(launch), [], []
    for number in numbers:
        state, name = states.get(number), launch.trial_name(number)
        if state is None:
            continue
        try:
            if state == "ACTIVE" and open_attempt(launch.model_dir(number)) is not None:
                gcloud.halt(launch, number)
            gcloud.ask(gcloud.delete(launch, number), but="NOT_FOUND")
            deleted.append(name)
        except UserError as error:
            left.append(f"{name} ({error})")
    if left:
        raise Unavailable(
            f"slices that are still there, and cost money: {', '.join(left)}; t5lite launch cancel "
            f"{launch.reference} tries again"
        )
    return deleted

"""The queued resources of a launch as they are on Google Cloud."""

import re
from collections.abc import Sequence
from typing import Any

from t5lite.core.errors import Unavailable, UserError
from t5lite.core.records import OBJECT, TEXT, Schema, list_of
from t5lite.core.run_directory import open_attempt
from t5lite.launching.engines.programs import call_program, decode_output
from t5lite.launching.engines.tpu.gcloud import GcloudCommands, call_gcloud

# Upper bound on the time that a run takes to save.
SAVE_SECONDS = 1800
# What `gcloud compute tpus queued-resources list` prints.
_RESOURCES = list_of(Schema(required={"name": TEXT}, optional={"state": OBJECT}).kind)
STOP_ON_WORKER = "bash ~/.t5lite/worker.sh stop"


def slice_states(commands: GcloudCommands) -> dict[int, str]:
    """Returns the state of every queued resource of a launch, by trial.

    Raises:
        UserError: if one of its name belongs to another launch.
    """
    listed = call_gcloud(commands.list_all())
    found = {}
    pattern = re.compile(rf"{re.escape(commands.launch.name)}-(\d{{4,}})")
    for resource in decode_output("gcloud", listed, _RESOURCES):
        name = resource["name"].rpartition("/")[2]
        match = pattern.fullmatch(name)
        if match is None:
            continue
        nodes: list[dict[str, Any]] = resource.get("tpu", {}).get("nodeSpec", [])
        owners = {node.get("node", {}).get("labels", {}).get("t5lite") for node in nodes}
        if nodes and owners != {commands.owner}:
            raise UserError(
                f"the queued resource {name} exists and belongs to another launch; use another "
                "--name"
            )
        found[int(match[1])] = resource.get("state", {}).get("state", "ACCEPTED")
    return found


def stop_run(commands: GcloudCommands, number: int) -> None:
    """Asks the run of a trial to save and end, and waits until it has."""
    call_program(commands.ssh(number, STOP_ON_WORKER), seconds=SAVE_SECONDS)


def delete_slices(commands: GcloudCommands, numbers: Sequence[int]) -> list[str]:
    """Deletes the slices of some trials, after their runs have saved; returns the names.

    Raises:
        Unavailable: if one cannot be deleted, after deleting the others.
    """
    launch = commands.launch
    states = slice_states(commands)
    deleted: list[str] = []
    remaining: list[str] = []
    for number in numbers:
        state = states.get(number)
        name = launch.trial_name(number)
        if state is None:
            continue
        try:
            if state == "ACTIVE" and open_attempt(launch.model_dir(number)) is not None:
                stop_run(commands, number)
            call_gcloud(commands.delete(number), harmless="NOT_FOUND")
            deleted.append(name)
        except UserError as error:
            remaining.append(f"{name} ({error})")
    if remaining:
        raise Unavailable(
            f"slices that still exist, and cost money: {', '.join(remaining)}; retry with "
            f"t5lite launch cancel {launch.reference}"
        )
    return deleted

"""gcloud's commands for the queued resources of a launch, and what it answers."""

import hashlib
import json
import os
import pathlib
import re
import shlex
import time
from collections.abc import Sequence
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.run_directory import next_attempt
from t5lite.launching.engines.outside import call
from t5lite.launching.engines.shipping import CODE
from t5lite.launching.engines.tpu.slices import Slice, slice_of
from t5lite.launching.launch import Launch

TRIES = 5
# As long as a checkpoint may take.
SAVE_SECONDS = 1800
# Errors that pass.
PASSING = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|ABORTED|Bad Gateway|per minute|did not answer|"
    r"onnection|[Tt]imed out|"
    r"Unable to find the server|name resolution"
)
NAME = re.compile(r"[a-z][-a-z0-9]{0,40}")


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


def commands(launch: Launch, number: int) -> list[list[str]]:
    """Returns what is called for a trial that nothing happens to, in order."""
    rows = launch.rows
    arguments = launch.arguments(number, rows[number] if number < len(rows) else {})
    attempt = next_attempt(launch.model_dir(number))
    return [
        create(launch, number),
        _gcloud(launch, "queued-resources", "describe", launch.trial_name(number), "--format=json"),
        copy(launch, number),
        ssh(launch, number, started(attempt, arguments)),
        delete(launch, number),
    ]


def create(launch: Launch, number: int) -> list[str]:
    """Returns what creates the slice of a trial."""
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


def delete(launch: Launch, number: int) -> list[str]:
    """Returns what deletes it."""
    name = launch.trial_name(number)
    return _gcloud(launch, "queued-resources", "delete", name, "--force", "--async")


def copy(launch: Launch, number: int) -> list[str]:
    """Returns what copies the code to all of its workers."""
    group, workers = _workers(launch)
    workers = [word for word in workers if not word.startswith("--ssh-flag")]
    code = str(pathlib.Path(launch.folder) / CODE)
    return _gcloud(
        launch, group, "scp", code, f"{launch.trial_name(number)}:t5lite.tar.gz", *workers
    )


def ssh(launch: Launch, number: int, command: str) -> list[str]:
    """Returns what runs a command on all of its workers."""
    group, workers = _workers(launch)
    # Or a connection that was lost on the way would be waited on for hours.
    alive = "--ssh-flag=-oServerAliveInterval=30"
    name = launch.trial_name(number)
    return _gcloud(launch, group, "ssh", name, f"--command={command}", alive, *workers)


def started(attempt: int, arguments: Sequence[str]) -> str:
    """Returns the command that a worker starts an attempt with."""
    # Failing ends with 1: tar's own 2 would pass for a mistake of the user's.
    unpack = "mkdir -p ~/.t5lite && tar -xzf ~/t5lite.tar.gz -C ~/.t5lite || exit 1"
    return f"{unpack}; bash ~/.t5lite/worker.sh start {attempt} {shlex.join(arguments)}"


def halt(launch: Launch, number: int) -> None:
    """Asks the run of a trial to save and end, and waits for that."""
    call(ssh(launch, number, "bash ~/.t5lite/worker.sh stop"), seconds=SAVE_SECONDS)


def states(launch: Launch) -> dict[int, str]:
    """Returns the state of every queued resource of the launch, by trial.

    Raises:
        UserError: where one of that name is another launch's.
    """
    listed = ask(_gcloud(launch, "queued-resources", "list", "--format=json"))
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


def ask(command: Sequence[str], *, but: str | None = None) -> str:
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


def poll_seconds() -> float:
    """How often Google is asked: T5LITE_POLL_SECONDS, or 30."""
    return float(os.environ.get("T5LITE_POLL_SECONDS") or 30)


def _workers(launch: Launch) -> tuple[str, list[str]]:
    """By which commands all workers are reached."""
    several = int(launch.resources.get("slices") or 1) > 1
    own = list(launch.resources.get("ssh_options") or ())
    group = "queued-resources" if several else "tpu-vm"
    return group, [*(["--node=all"] if several else []), "--worker=all", *own]


def _owner(launch: Launch) -> str:
    return hashlib.sha256(launch.folder.encode()).hexdigest()[:16]


def _gcloud(launch: Launch, group: str, action: str, *words: str) -> list[str]:
    given = launch.resources
    where = [f"--{name}={given[name]}" for name in ("zone", "project") if given.get(name)]
    return ["gcloud", "compute", "tpus", group, action, *words, *where, "--quiet"]

"""The gcloud commands of a launch, and calls that survive short outages."""

import hashlib
import os
import pathlib
import re
import shlex
import time
from collections.abc import Sequence

from t5lite.core.errors import UserError
from t5lite.core.run_directory import next_attempt
from t5lite.launching.engines.programs import call_program
from t5lite.launching.engines.resources import Resources, resource, resources
from t5lite.launching.engines.script_text import check_script_path
from t5lite.launching.engines.shipping import CODE_ARCHIVE
from t5lite.launching.engines.tpu.slices import TpuSlice, slice_of
from t5lite.launching.launch import Launch

MAX_CALLS = 5
# Errors that pass by themselves.
TRANSIENT_ERROR = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|ABORTED|Bad Gateway|per minute|did not answer|"
    r"onnection|[Tt]imed out|"
    r"Unable to find the server|name resolution"
)
QUEUED_RESOURCE_NAME = re.compile(r"[a-z][-a-z0-9]{0,40}")
GOOGLE_NAME = r"[a-z0-9]([-a-z0-9.:]*[a-z0-9])?"
GCLOUD_FLAG = r"--[a-zA-Z].*"


@resources
class TpuResources(Resources):
    """What a trial gets from Cloud TPU."""

    zone: str | None = resource(
        "Google Cloud zone, as in us-east5-a.",
        pattern=GOOGLE_NAME,
        rule="a zone such as us-east5-a",
    )
    project: str | None = resource(
        "Google Cloud project; gcloud's default if not given.",
        pattern=GOOGLE_NAME,
        rule="the id of a Google Cloud project",
    )
    spot: bool = resource("Use slices that may be preempted.", default=False)
    reserved: bool = resource("Use a reservation.", default=False)
    slices: int | None = resource("Slices of each trial; 1 if not given.")
    runtime_version: str | None = resource(
        "Software that the machines boot; Google's default for the slice if not given.",
        pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*",
        rule="a runtime version such as v2-alpha-tpuv6e",
    )
    setup: str | None = resource("Shell script that sets a worker up, instead of launch/setup.sh.")
    wheel: str | None = resource("Wheel of t5lite; built from this checkout if not given.")
    ssh_options: tuple[str, ...] = resource(
        "A further flag of gcloud's ssh and scp, as in --ssh_options=--internal-ip; may be "
        "repeated.",
        default=(),
        pattern=GCLOUD_FLAG,
        rule="a flag of gcloud on one line, as in --ssh_options=--internal-ip",
    )
    options: tuple[str, ...] = resource(
        "A further flag of gcloud's queued-resources create; may be repeated.",
        default=(),
        pattern=GCLOUD_FLAG,
        rule="a flag of gcloud on one line, as in --options=--network=n",
    )


class GcloudCommands:
    """The commands for the queued resources of a launch; none is run here.

    Args:
        target: the name of the slice, such as "v5e-16".
    """

    def __init__(self, launch: Launch, target: str, given: TpuResources) -> None:
        self.launch = launch
        self._target = target
        self._given = given

    def wanted_slice(self) -> TpuSlice:
        """Returns the slice that `--on=tpu:NAME` names.

        Raises:
            UserError: if it is not offered as a queued resource, or the launch's name cannot be
                the name of one.
        """
        wanted = slice_of(self._target)
        if wanted.runtime is None:
            raise UserError(
                f"{wanted.accelerator} is offered on GKE only: --on=gke:{wanted.accelerator}"
            )
        if not self._given.zone:
            raise UserError("--on=tpu needs --zone, such as us-east5-a")
        if not QUEUED_RESOURCE_NAME.fullmatch(self.launch.name):
            raise UserError(
                "--name of a launch on TPUs must be at most 41 lower-case letters, digits and "
                f"hyphens, and start with a letter, got {self.launch.name!r}"
            )
        # gcloud's scp takes the text before a colon for a host.
        check_script_path("--dir", self.launch.folder, forbidden=":")
        return wanted

    def whole_attempt(self, number: int) -> list[list[str]]:
        """Returns the commands of a trial that is never preempted, in order."""
        create = self.create(number)
        settings = self.launch.planned
        params = settings[number] if number < len(settings) else {}
        arguments = self.launch.arguments(number, params)
        attempt = next_attempt(self.launch.model_dir(number))
        name = self.launch.trial_name(number)
        return [
            create,
            self._gcloud("queued-resources", "describe", name, "--format=json"),
            self.copy(number),
            self.ssh(number, start_on_worker(attempt, arguments)),
            self.delete(number),
        ]

    def create(self, number: int) -> list[str]:
        """Returns the command that creates the slice of a trial."""
        wanted = self.wanted_slice()
        given = self._given
        name = self.launch.trial_name(number)
        nodes = [f"--node-id={name}"]
        if self._num_slices > 1:
            nodes = [f"--node-count={self._num_slices}", f"--node-prefix={name}"]
        kinds = [f"--{kind}" for kind in ("spot", "reserved") if getattr(given, kind)]
        words = [
            f"--accelerator-type={wanted.accelerator}",
            f"--runtime-version={given.runtime_version or wanted.runtime}",
            *nodes,
            *kinds,
            f"--labels=t5lite={self.owner}",
            *given.options,
        ]
        return self._gcloud("queued-resources", "create", name, *words)

    def delete(self, number: int) -> list[str]:
        """Returns the command that deletes the slice of a trial."""
        name = self.launch.trial_name(number)
        return self._gcloud("queued-resources", "delete", name, "--force", "--async")

    def list_all(self) -> list[str]:
        """Returns the command that lists all queued resources of the zone."""
        return self._gcloud("queued-resources", "list", "--format=json")

    def copy(self, number: int) -> list[str]:
        """Returns the command that copies the packed code to all workers."""
        options = [word for word in self._given.ssh_options if not word.startswith("--ssh-flag")]
        code = str(pathlib.Path(self.launch.folder) / CODE_ARCHIVE)
        to = f"{self.launch.trial_name(number)}:t5lite.tar.gz"
        return self._gcloud(self._group, "scp", code, to, *self._workers, *options)

    def ssh(self, number: int, command: str) -> list[str]:
        """Returns the command that runs a shell command on all workers."""
        # Without keep-alives a lost connection would be waited for for hours.
        alive = "--ssh-flag=-oServerAliveInterval=30"
        name = self.launch.trial_name(number)
        options = [alive, *self._workers, *self._given.ssh_options]
        return self._gcloud(self._group, "ssh", name, f"--command={command}", *options)

    @property
    def owner(self) -> str:
        """The label by which a queued resource belongs to the launch."""
        return hashlib.sha256(self.launch.folder.encode()).hexdigest()[:16]

    @property
    def _num_slices(self) -> int:
        return self._given.slices or 1

    @property
    def _group(self) -> str:
        """The group of gcloud's commands that reach all workers."""
        return "queued-resources" if self._num_slices > 1 else "tpu-vm"

    @property
    def _workers(self) -> tuple[str, ...]:
        return ("--node=all", "--worker=all") if self._num_slices > 1 else ("--worker=all",)

    def _gcloud(self, group: str, action: str, *words: str) -> list[str]:
        given = self._given
        where = [
            f"--{name}={value}"
            for name, value in (("zone", given.zone), ("project", given.project))
            if value
        ]
        return ["gcloud", "compute", "tpus", group, action, *words, *where, "--quiet"]


def start_on_worker(attempt: int, arguments: Sequence[str]) -> str:
    """Returns the shell command with which a worker starts an attempt."""
    # NOTE: tar's own status 2 would pass for a user's mistake.
    unpack = "mkdir -p ~/.t5lite && tar -xzf ~/t5lite.tar.gz -C ~/.t5lite || exit 1"
    return f"{unpack}; bash ~/.t5lite/worker.sh start {attempt} {shlex.join(arguments)}"


def call_gcloud(command: Sequence[str], *, harmless: str | None = None) -> str:
    """Calls gcloud and retries transient errors, so that a long sweep survives an outage.

    Args:
        harmless: part of an error that counts as success: an earlier call may have succeeded though
            its answer was lost.

    Raises:
        UserError: if gcloud rejects the command, or still fails at the last attempt.
    """
    for remaining in reversed(range(MAX_CALLS)):
        try:
            return call_program(command)
        except UserError as error:
            if harmless is not None and harmless in str(error):
                return ""
            if not remaining or not TRANSIENT_ERROR.search(str(error)):
                raise
            time.sleep(poll_seconds())
    raise AssertionError


def poll_seconds() -> float:
    """Returns the seconds between two questions to Google: T5LITE_POLL_SECONDS, or 30."""
    return float(os.environ.get("T5LITE_POLL_SECONDS") or 30)

"""The engine of GKE: a JobSet for each trial, which Kubernetes starts and restarts.

Pods and this machine share the folder of the launch, at the same path, through a claim.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from t5lite.core.counts import counted
from t5lite.core.errors import UserError
from t5lite.core.records import OBJECT, TEXT, Schema, list_of
from t5lite.core.run_directory import RESULT, outcomes
from t5lite.launching.engines.engine import Engine, OnState, Submission
from t5lite.launching.engines.gke.jobset import (
    FOLDER_ANNOTATION,
    GRACE_SECONDS,
    LAUNCH_LABEL,
    GkeResources,
    jobset,
)
from t5lite.launching.engines.programs import CALL_SECONDS, call_program, decode_output
from t5lite.launching.engines.script_text import check_script_path
from t5lite.launching.engines.shipping import (
    check_shipped_files,
    check_wheel,
    pack_code,
    setup_script,
)
from t5lite.launching.engines.tpu.slices import TpuSlice, slice_of
from t5lite.launching.sweeps.trial_store import TrialStore
from t5lite.launching.trial import complete_trial

# Kueue and GKE append to the name of a JobSet, and the whole must fit into 63 characters.
GKE_NAME = re.compile(r"[a-z][-a-z0-9]{0,22}")
_NAME = Schema(required={"name": TEXT}, optional={"annotations": OBJECT})
# What `kubectl get jobsets` prints.
_JOBSETS = Schema(required={"items": list_of(Schema(required={"metadata": _NAME.kind}).kind)}).kind
# Resources without which there is no JobSet.
REQUIRED_RESOURCES = {
    "image": "a container image with Python, JAX for TPUs and the requirements of t5lite",
    "claim": "a PersistentVolumeClaim that many nodes may write; pods mount it at --dir",
}


class GkeEngine(Engine):
    """Creates JobSets with kubectl."""

    resources_type = GkeResources
    packs_files = True

    def wanted_slice(self) -> TpuSlice:
        """Returns the slice that `--on=gke:NAME` names.

        Raises:
            UserError: if the launch cannot be a set of JobSets.
        """
        launch = self.launch
        wanted = slice_of(self.target)
        if not GKE_NAME.fullmatch(launch.name):
            raise UserError(
                "--name of a launch on GKE must be at most 23 lower-case letters, digits and "
                f"hyphens, and start with a letter, got {launch.name!r}"
            )
        check_script_path("--dir", launch.folder, forbidden=":")
        for name, meaning in REQUIRED_RESOURCES.items():
            if not getattr(self.resources, name):
                raise UserError(f"--on=gke needs --{name}, {meaning}")
        if launch.parallel:
            raise UserError("--parallel is not for --on=gke; Kueue limits how many run (--queue)")
        if launch.prune or (launch.is_sweep and not launch.planned):
            raise UserError(
                "--on=gke takes sweeps whose settings are known in advance: grid, list, random or "
                "quasi, without --prune"
            )
        return wanted

    def check(self, numbers: Sequence[int]) -> str:
        """Lets the cluster validate the first trial's JobSet without creating it.

        Raises:
            UserError: if the cluster rejects it, or its name belongs to another launch.
        """
        self.wanted_slice()
        self._setup_script()
        check_shipped_files(self.launch)
        check_wheel(self.launch, self.resources.wheel)
        self._jobsets()
        self._kubectl("apply", "--dry-run=server", "-f", "-", text=self.render(numbers[:1]))
        return ""

    def render(self, numbers: Sequence[int]) -> str:
        """Returns the manifests as YAML."""
        import yaml

        documents = (self.manifest(number) for number in numbers)
        text: str = yaml.safe_dump_all(documents, sort_keys=False, width=1000)
        return text

    def manifest(self, number: int) -> dict[str, Any]:
        """Returns the JobSet of a trial."""
        return jobset(self.launch, number, self.wanted_slice(), self.resources)

    def submit(self, store: TrialStore, numbers: Sequence[int], on_state: OnState) -> Submission:
        """Creates the JobSets of the trials that have none, or whose JobSet has ended."""
        del on_state
        existing = self._jobsets()
        ended = [n for n in numbers if n in existing and _terminal_state(existing[n])]
        if ended:
            # Cancelled or failed before: a JobSet that has ended does not start again.
            self._delete(ended)
        missing = [number for number in numbers if number not in existing or number in ended]
        if not missing:
            return Submission(
                message=f"{self.launch.name}: all remaining trials are on the cluster"
            )
        pack_code(self.launch, setup=self._setup_script(), wheel=self.resources.wheel)
        for number in missing:
            store.take(number)
            self.launch.model_dir(number).mkdir(parents=True, exist_ok=True)
        self._kubectl("apply", "-f", "-", text=self.render(missing))
        created = f"created {counted(len(missing), 'JobSet')}"
        return Submission(message=f"{created}; t5lite launch status {self.launch.reference}")

    def reconcile(self, store: TrialStore) -> None:
        """Records the trials that have ended on the cluster."""
        launch = self.launch
        unfinished = store.unfinished()
        existing = self._jobsets() if unfinished else {}
        for number in unfinished:
            state = _terminal_state(existing[number]) if number in existing else None
            model_dir = launch.model_dir(number)
            ended = outcomes(model_dir)
            # A run has finished once it wrote its result; other commands write none.
            is_train = launch.command == "train"
            if (model_dir / RESULT).exists() if is_train else state == "Completed":
                complete_trial(launch, store, number)
            elif state == "Failed" and not (ended["unavailable"] or ended["stalled"]):
                store.tell(number, "failed")
            # Otherwise it can resume: a resource was missing, it stalled, or its result is not
            # visible yet.

    def active(self) -> dict[int, str]:
        """Returns the trials whose JobSet has not ended, each "pending" or "running"."""
        found = {}
        for number, resource in self._jobsets().items():
            if not _terminal_state(resource):
                jobs = resource.get("status", {}).get("replicatedJobsStatus") or []
                is_running = any(job.get("active") or job.get("ready") for job in jobs)
                found[number] = "running" if is_running else "pending"
        return found

    def cancel(self) -> str:
        """Deletes the launch's JobSets; their pods save and end."""
        active = sorted(self.active())
        if not active:
            return "has no active JobSet"
        self._delete(active)
        return f"deleted {', '.join(self.launch.trial_name(number) for number in active)}"

    def _delete(self, numbers: Sequence[int]) -> None:
        names = [self.launch.trial_name(number) for number in numbers]
        # Pods save before they end, and hold their run directories until then.
        words = ["delete", "jobset", *names, "--ignore-not-found", "--cascade=foreground"]
        self._kubectl(*words, seconds=2 * GRACE_SECONDS)

    def _setup_script(self) -> pathlib.Path:
        return setup_script(self.launch, self.resources.setup, "setup_image.sh")

    def _jobsets(self) -> dict[int, dict[str, Any]]:
        """Returns the JobSets of the launch by trial.

        Raises:
            UserError: if one belongs to another launch of the same name.
        """
        listed = self._kubectl(
            "get", "jobsets", "-l", f"{LAUNCH_LABEL}={self.launch.name}", "-o", "json"
        )
        found = {}
        for resource in decode_output("kubectl", listed, _JOBSETS)["items"]:
            metadata = resource["metadata"]
            owner = metadata.get("annotations", {}).get(FOLDER_ANNOTATION)
            if owner not in (None, self.launch.folder):
                raise UserError(
                    f"the JobSet {metadata['name']} belongs to another launch, of {owner}; use "
                    "another --name"
                )
            found[int(metadata["name"].rpartition("-")[2])] = resource
        return found

    def _kubectl(self, *words: str, text: str | None = None, seconds: float = CALL_SECONDS) -> str:
        return call_program(["kubectl", *words, *self.resources.options], text, seconds=seconds)


def _terminal_state(resource: dict[str, Any]) -> str | None:
    """Returns "Completed" or "Failed" for a JobSet that has ended."""
    state = resource.get("status", {}).get("terminalState")
    return str(state) if state else None

"""Trials on TPU slices of a GKE cluster: a JobSet each, which Kubernetes starts and restarts.

Pods and this machine share the folder of the launch, at the same path, through a claim.
"""

import json
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from t5lite.core.errors import UserError
from t5lite.core.run_directory import RESTART_EXIT, RESULT, outcomes
from t5lite.launching.engines.outside import SECONDS, call
from t5lite.launching.engines.shipping import CODE, check_files, pack
from t5lite.launching.engines.tpu.slices import CHIPS_PER_HOST, Slice, slice_of
from t5lite.launching.launch import Launch
from t5lite.launching.sweeps.study import Study
from t5lite.launching.trial import complete

LABEL = "t5lite/launch"
# Kueue and GKE add to the name of a JobSet, and all of it must fit into 63 characters.
NAME = re.compile(r"[a-z][-a-z0-9]{0,22}")
EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
# From being asked to stop to being killed: time to save.
GRACE_SECONDS = 300


def slice_for(launch: Launch) -> Slice:
    """Returns the slice that `--on=gke:NAME` asks for.

    Raises:
        UserError: where the launch lacks what a JobSet needs.
    """
    wanted = slice_of(launch.engine.partition(":")[2])
    if not NAME.fullmatch(launch.name):
        raise UserError(
            "--name of a launch on GKE must be up to 23 lower-case letters, digits and hyphens, "
            f"a letter first, got {launch.name!r}"
        )
    for name, what in {
        "image": "a container image with Python, JAX for TPUs and what t5lite needs",
        "claim": "a PersistentVolumeClaim that many nodes may write: pods mount it at --dir",
    }.items():
        if not launch.resources.get(name):
            raise UserError(f"--on=gke needs --{name}, {what}")
    if launch.parallel:
        raise UserError("--parallel is not for --on=gke: Kueue says how many run (--queue)")
    if launch.prune or (launch.is_sweep and not launch.rows):
        raise UserError(
            "--on=gke takes sweeps whose trials are known beforehand: grid, list, random or "
            "quasi, without --prune"
        )
    return wanted


def jobset(launch: Launch, number: int) -> dict[str, Any]:
    """Returns the manifest of a trial."""
    wanted, given = slice_for(launch), launch.resources
    arguments = launch.arguments(number, launch.rows[number])
    folder = pathlib.Path(launch.folder)
    work = "$HOME/.t5lite"
    script = (
        f"mkdir -p {work} && tar -xzf {shlex.quote(str(folder / CODE))} -C {work} && "
        f"exec bash {work}/worker.sh run {shlex.join(arguments)}"
    )
    log = shlex.quote(str(launch.model_dir(number) / "log.txt"))
    # Of several pods the first writes the log that `launch logs` shows.
    is_first = '[ "${JOB_INDEX:-0}${JOB_COMPLETION_INDEX:-0}" = 00 ]'
    tee = f"! {is_first} || exec > >(tee -a {log}) 2>&1; "
    # Kubernetes makes one of two, and would take $(NAME) for a variable of its own.
    command = f"mkdir -p {shlex.quote(str(folder))}; {tee}{script}".replace("$", "$$")
    chips = min(wanted.chips, CHIPS_PER_HOST)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": wanted.label,
        "cloud.google.com/gke-tpu-topology": wanted.topology,
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": selector,
        "containers": [
            {
                "name": "t5lite",
                "image": given["image"],
                "command": ["bash", "-c", command],
                "env": [
                    {
                        "name": "JOB_INDEX",
                        "valueFrom": {
                            "fieldRef": {
                                "fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"
                            }
                        },
                    }
                ],
                "resources": {
                    kind: {"google.com/tpu": str(chips)} for kind in ("requests", "limits")
                },
                "volumeMounts": [{"name": "runs", "mountPath": str(folder.parent)}],
            }
        ],
        "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": given["claim"]}}],
    }
    if given.get("spot"):
        selector["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"] = [
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        ]
    free = [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": "t5lite",
                "operator": "In",
                "values": [RESTART_EXIT],
            },
        },
    ]
    queue = given.get("queue")
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": launch.trial_name(number),
            "labels": {
                LABEL: launch.name,
                **({"kueue.x-k8s.io/queue-name": queue} if queue else {}),
            },
            "annotations": {
                "t5lite/folder": launch.folder,
                # Each slice of several machines is a node pool of its own.
                **({EXCLUSIVE: "cloud.google.com/gke-nodepool"} if wanted.hosts > 1 else {}),
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": launch.max_failures,
                # Preempted, or saved and to be started again; what else fails draws on the budget.
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": int(given.get("slices") or 1),
                    "template": {
                        "spec": {
                            "parallelism": wanted.hosts,
                            "completions": wanted.hosts,
                            "completionMode": "Indexed",
                            "backoffLimit": 0,
                            "podFailurePolicy": {"rules": free},
                            "template": {"spec": pod},
                        }
                    },
                }
            ],
        },
    }


def check(launch: Launch, numbers: Sequence[int]) -> str:
    """Has the cluster look at the first trial's JobSet without creating it, and returns "".

    Raises:
        UserError: where it would refuse it, or one of that name is another launch's.
    """
    slice_for(launch)
    check_files(launch)
    _jobsets(launch)
    _kubectl(launch, "apply", "--dry-run=server", "-f", "-", text=text(launch, numbers[:1]))
    return ""


def text(launch: Launch, numbers: Sequence[int]) -> str:
    """Returns the manifests."""
    documents = (jobset(launch, number) for number in numbers)
    return yaml.safe_dump_all(documents, sort_keys=False, width=1000)


def submit(launch: Launch, study: Study, numbers: Sequence[int]) -> str:
    """Creates the JobSets of those trials that have none which goes on, and tells of it."""
    there = _jobsets(launch)
    over = [n for n in numbers if n in there and _end(there[n])]
    if over:
        # Cancelled or failed before: a JobSet that has ended starts no more.
        _delete(launch, over)
    missing = [number for number in numbers if number not in there or number in over]
    if not missing:
        return f"{launch.name}: the cluster has all that is left"
    pack(launch)
    for number in missing:
        study.take(number)
        launch.model_dir(number).mkdir(parents=True, exist_ok=True)
    _kubectl(launch, "apply", "-f", "-", text=text(launch, missing))
    return f"created {len(missing)} JobSets; t5lite launch status {launch.reference}"


def reconcile(launch: Launch, study: Study) -> None:
    """Tells the study of trials that have ended on the cluster."""
    unended = [trial.number for trial in study.trials() if not trial.state.is_finished()]
    there = _jobsets(launch) if unended else {}
    for number in unended:
        if launch.command == "train" and (launch.model_dir(number) / RESULT).exists():
            complete(launch, study, number)
        elif number in there and (end := _end(there[number])):
            if end == "Completed" and launch.command != "train":
                complete(launch, study, number)
            elif end == "Failed" and outcomes(launch.model_dir(number))["unavailable"] == 0:
                study.tell(number, "failed")
            # What lacked something, or whose result is not to be seen yet, can be resumed.


def active(launch: Launch) -> dict[int, str]:
    """Returns the trials whose JobSet has not ended, and whether it waits or runs."""
    found = {}
    for number, resource in _jobsets(launch).items():
        if not _end(resource):
            jobs = resource.get("status", {}).get("replicatedJobsStatus") or []
            is_running = any(job.get("active") or job.get("ready") for job in jobs)
            found[number] = "running" if is_running else "pending"
    return found


def cancel(launch: Launch) -> str:
    """Deletes the launch's JobSets, whose pods save and end, and tells of it."""
    going = sorted(active(launch))
    if not going:
        return "has no JobSet that goes on"
    _delete(launch, going)
    return f"deleted {', '.join(launch.trial_name(number) for number in going)}"


def _delete(launch: Launch, numbers: Sequence[int]) -> None:
    names = [launch.trial_name(number) for number in numbers]
    # Pods save before they end, and hold their folders until then.
    _kubectl(
        launch,
        *("delete", "jobset", *names, "--ignore-not-found", "--cascade=foreground"),
        seconds=2 * GRACE_SECONDS,
    )


def _end(resource: dict[str, Any]) -> str | None:
    """Returns "Completed" or "Failed" of a JobSet that has ended."""
    state = resource.get("status", {}).get("terminalState")
    return str(state) if state else None


def _jobsets(launch: Launch) -> dict[int, dict[str, Any]]:
    """The JobSets of the launch by trial."""
    listed = _kubectl(launch, "get", "jobsets", "-l", f"{LABEL}={launch.name}", "-o", "json")
    found = {}
    for resource in json.loads(listed)["items"]:
        metadata = resource["metadata"]
        owner = metadata.get("annotations", {}).get("t5lite/folder")
        if owner not in (None, launch.folder):
            raise UserError(
                f"the JobSet {metadata['name']} belongs to another launch, of {owner}: use "
                "another --name"
            )
        found[int(metadata["name"].rpartition("-")[2])] = resource
    return found


def _kubectl(launch: Launch, *words: str, text: str | None = None, seconds: float = SECONDS) -> str:
    options = launch.resources.get("options") or ()
    return call(["kubectl", *words, *options], text, seconds=seconds)

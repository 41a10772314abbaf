"""The JobSet of a trial: a manifest that Kubernetes starts and restarts."""

import pathlib
import shlex
from typing import Any

from t5lite.core.run_directory import RESTART_EXIT
from t5lite.launching.engines.resources import Resources, resource, resources
from t5lite.launching.engines.shipping import CODE_ARCHIVE
from t5lite.launching.engines.tpu.slices import CHIPS_PER_HOST, TpuSlice
from t5lite.launching.launch import LOG, Launch

LAUNCH_LABEL = "t5lite/launch"
FOLDER_ANNOTATION = "t5lite/folder"
EXCLUSIVE_TOPOLOGY = "alpha.jobset.sigs.k8s.io/exclusive-topology"
SPOT = "cloud.google.com/gke-spot"
# Between SIGTERM and SIGKILL: time to save a checkpoint.
GRACE_SECONDS = 300
CONTAINER = "t5lite"
RESOURCE_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
RESOURCE_NAME_RULE = "a Kubernetes name of lower-case letters, digits, hyphens and dots"


@resources
class GkeResources(Resources):
    """What a trial gets from a GKE cluster."""

    image: str | None = resource(
        "Container image with Python, JAX for TPUs and the requirements of t5lite.",
        pattern=r"[A-Za-z0-9][A-Za-z0-9._/:@-]*",
        rule="a container image, as in us-docker.pkg.dev/project/jax:1",
    )
    claim: str | None = resource(
        "PersistentVolumeClaim that pods mount at --dir.",
        pattern=RESOURCE_NAME,
        rule=RESOURCE_NAME_RULE,
    )
    queue: str | None = resource("Queue of Kueue.", pattern=RESOURCE_NAME, rule=RESOURCE_NAME_RULE)
    spot: bool = resource("Use nodes that may be preempted.", default=False)
    slices: int | None = resource("Slices of each trial; 1 if not given.")
    setup: str | None = resource(
        "Shell script that sets a pod up, instead of launch/setup_image.sh."
    )
    wheel: str | None = resource("Wheel of t5lite; built from this checkout if not given.")
    options: tuple[str, ...] = resource(
        "A further flag of kubectl, as in --options=--context=c; may be repeated.",
        default=(),
        pattern=r"-\S.*",
        rule="a flag of kubectl on one line, as in --options=--context=c",
    )


def jobset(launch: Launch, number: int, wanted: TpuSlice, given: GkeResources) -> dict[str, Any]:
    """Returns the manifest of a trial."""
    labels = {LAUNCH_LABEL: launch.name}
    if given.queue:
        labels["kueue.x-k8s.io/queue-name"] = given.queue
    annotations = {FOLDER_ANNOTATION: launch.folder}
    if wanted.hosts > 1:
        # Each slice of several machines is a node pool of its own.
        annotations[EXCLUSIVE_TOPOLOGY] = "cloud.google.com/gke-nodepool"
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": launch.trial_name(number),
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": launch.max_failures,
                # A preemption, or a run that saved and asks for a restart, is free; any other
                # failure counts against the budget.
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
                    "replicas": given.slices or 1,
                    "template": {"spec": _job(launch, number, wanted, given)},
                }
            ],
        },
    }


def _job(launch: Launch, number: int, wanted: TpuSlice, given: GkeResources) -> dict[str, Any]:
    """Returns the Job of one slice."""
    free = [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": CONTAINER,
                "operator": "In",
                "values": [RESTART_EXIT],
            },
        },
    ]
    return {
        "parallelism": wanted.hosts,
        "completions": wanted.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": free},
        "template": {"spec": _pod(launch, number, wanted, given)},
    }


def _pod(launch: Launch, number: int, wanted: TpuSlice, given: GkeResources) -> dict[str, Any]:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": wanted.label,
        "cloud.google.com/gke-tpu-topology": wanted.topology,
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": selector,
        "containers": [_container(launch, number, wanted, given)],
        "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": given.claim}}],
    }
    if given.spot:
        selector[SPOT] = "true"
        pod["tolerations"] = [
            {"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        ]
    return pod


def _container(
    launch: Launch, number: int, wanted: TpuSlice, given: GkeResources
) -> dict[str, Any]:
    chips = str(min(wanted.chips, CHIPS_PER_HOST))
    index = {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}
    return {
        "name": CONTAINER,
        "image": given.image,
        "command": ["bash", "-c", pod_command(launch, number)],
        "env": [{"name": "JOB_INDEX", "valueFrom": {"fieldRef": index}}],
        "resources": {kind: {"google.com/tpu": chips} for kind in ("requests", "limits")},
        "volumeMounts": [{"name": "runs", "mountPath": str(pathlib.Path(launch.folder).parent)}],
    }


def pod_command(launch: Launch, number: int) -> str:
    """Returns the shell command of a pod: unpack the code, log, run the trial."""
    folder = pathlib.Path(launch.folder)
    arguments = launch.arguments(number, launch.planned[number])
    work = "$HOME/.t5lite"
    script = (
        f"mkdir -p {work} && tar -xzf {shlex.quote(str(folder / CODE_ARCHIVE))} -C {work} && "
        f"exec bash {work}/worker.sh run {shlex.join(arguments)}"
    )
    log = shlex.quote(str(launch.model_dir(number) / LOG))
    # Only the first pod writes the log that `launch logs` prints.
    is_first = '[ "${JOB_INDEX:-0}${JOB_COMPLETION_INDEX:-0}" = 00 ]'
    tee = f"! {is_first} || exec > >(tee -a {log}) 2>&1; "
    # NOTE: Kubernetes turns $$ into $, and replaces $(NAME) by a variable of its own.
    return f"mkdir -p {shlex.quote(str(folder))}; {tee}{script}".replace("$", "$$")

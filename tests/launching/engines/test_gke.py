"""Trials as JobSets: the real kubectl and the published schemas, against a fake API."""

import copy
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

from t5lite.core.errors import UserError
from t5lite.core.run_directory import outcomes, read_metrics
from t5lite.launching.engines.gke.jobset import EXCLUSIVE_TOPOLOGY
from t5lite.launching.engines.table import engine_of
from t5lite.launching.launch import Launch
from tests.launching.engines.gke_cluster import ApiServer, problems
from tests.launching.engines.test_slurm import TRAIN
from tests.launching.engines.test_tpu import SETUP
from tests.launching.engines.tpu_cloud import wait

ROOT = pathlib.Path(__file__).parent.parent.parent.parent
RESOURCES = {"image": "us-docker.pkg.dev/p/jax:1", "claim": "runs"}
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")


def launch(engine="gke:v5e-16", resources=None, **options):
    options = {"name": "a", "command": "train", "flags": ["--gin.STEPS=3"], **options}
    folder = f"/mnt/runs/{options.pop('name')}"
    return Launch(
        folder=folder,
        engine=engine,
        working_dir="/",
        resources=RESOURCES if resources is None else resources,
        **options,
    )


@pytest.mark.parametrize(
    ("engine", "more", "hosts", "chips", "topology", "label"),
    [
        ("gke:tpu7x-64", {}, 8, 4, "2x4x4", "tpu7x"),
        ("gke:v5e-16", {"spot": True, "queue": "team"}, 4, 4, "4x4", "tpu-v5-lite-podslice"),
        ("gke:v6e-256", {"slices": 4, "queue": "team"}, 64, 4, "16x16", "tpu-v6e-slice"),
        ("gke:v6e-1", {}, 1, 1, "1x1", "tpu-v6e-slice"),
        ("gke:v5p-1024", {"spot": True}, 128, 4, "8x8x8", "tpu-v5p-slice"),
    ],
)
def test_manifests_fit_the_published_schemas(engine, more, hosts, chips, topology, label):
    gke = engine_of(launch(engine, {**RESOURCES, **more}))
    manifest = gke.manifest(0)
    assert problems(manifest) == []
    exclusive = manifest["metadata"]["annotations"].keys() & {EXCLUSIVE_TOPOLOGY}
    assert bool(exclusive) == (hosts > 1)
    assert yaml.safe_load(gke.render([0])) == manifest
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    assert job["replicas"] == more.get("slices", 1)
    assert spec["parallelism"] == spec["completions"] == hosts
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": str(chips)}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label
    assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == bool(more.get("spot"))
    assert manifest["metadata"]["labels"].get("kueue.x-k8s.io/queue-name") == more.get("queue")
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 3
    # A misspelt key in any of the nested documents is found.
    for document, key in (
        (manifest["spec"], "sucessPolicy"),
        (spec, "backofLimit"),
        (pod, "volume"),
    ):
        document[key] = {}
        assert problems(manifest)
        del document[key]
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["failurePolicy"]["maxRestarts"] = "3"
    assert problems(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resources": {"claim": "runs"}}, "--on=gke needs --image"),
        ({"resources": {"image": "i"}}, "--on=gke needs --claim, a PersistentVolumeClaim"),
        ({"parallel": 2}, "--parallel is not for --on=gke"),
        ({"name": "A_b"}, "must be at most 23 lower-case letters"),
        ({"name": "a" * 24}, "must be at most 23 lower-case letters"),
        ({"engine": "gke:v5e-17"}, "a slice of v5e must be v5e-N with the number of its chips"),
        ({"engine": "gke:v4-31"}, "a slice of v4 must be v4-N with the number of its cores"),
        ({"engine": "gke:v7-8"}, "the kind of TPU is unknown: got 'v7'"),
        (
            {"space": {"train.seed": "range(3)"}, "prune": "asha", "first_score": 1},
            "known in advance: grid, list, random or quasi, without --prune",
        ),
        (
            {"space": {"A.b": "log(0.1, 1)"}, "method": "tpe", "trials": 3},
            "known in advance: grid, list, random or quasi, without --prune",
        ),
    ],
)
def test_launches_that_cannot_be_jobsets_are_rejected(options, message):
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        engine_of(launch(**options)).manifest(0)
    assert message in str(error.value)


@pytest.fixture
def cluster(tmp_path):
    server = ApiServer(tmp_path / "kube")
    yield server
    server.stop()


@pytest.fixture
def t5lite(cluster, tmp_path):
    (tmp_path / "setup.sh").write_text(SETUP.replace("{python}", sys.executable))

    def run(*arguments, command=(), code=0):
        behind = ["--", *command] if command else []
        words = ["launch", f"--dir={tmp_path}", *arguments, *behind]
        done = subprocess.run(
            [sys.executable, "-m", "t5lite", *words],
            cwd=ROOT,
            env={**os.environ, **cluster.environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr

    run.new = ("--on=gke:v5e-4", "--image=i", "--claim=c", f"--setup={tmp_path}/setup.sh")
    return run


@pytest.mark.proof
@needs_kubectl
def test_jobsets_are_created_and_their_ends_are_recorded(cluster, t5lite, tmp_path, one_device):
    words = (*t5lite.new, "--name=gke", "--sweep=train.seed=range(3)")
    train = [*TRAIN, "--gin.STEPS=60", "--gin.train.checkpoint_every_steps=10"]
    out = t5lite(*words, "--dry_run", command=train)
    assert out.startswith("# gke: 3 trials, 3 distinct settings")
    assert [m["metadata"]["name"] for m in yaml.safe_load_all(out)] == [
        f"gke-000{number}" for number in range(3)
    ]
    assert not cluster.jobsets
    assert not (tmp_path / "gke").exists()
    assert "created 3 JobSets" in t5lite(*words, command=train)
    assert "all remaining trials are on the cluster" in t5lite("resume", "gke")
    # The command of a pod, with a home of its own.
    pod = cluster.jobsets["gke-0001"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    environment = {**os.environ, **one_device, "HOME": str(tmp_path / "pod")}
    (tmp_path / "pod").mkdir()

    def start():
        # Kubernetes turns two into one.
        command = [w.replace("$$", "$") for w in pod["spec"]["containers"][0]["command"]]
        return subprocess.Popen(command, env=environment)

    folder = tmp_path / "gke" / "trials" / "0001"
    process = start()
    wait(lambda: process.poll() is None and len(read_metrics(folder)) > 12, 120)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 42
    assert start().wait(120) == 0
    assert outcomes(folder)["preempted"] == outcomes(folder)["finished"] == 1
    cluster.end("gke-0001", "Completed")
    cluster.end("gke-0002", "Failed")
    states = [trial["state"] for trial in json.loads(t5lite("results", "gke", "--json"))["trials"]]
    assert states == ["pending", "complete", "failed"]
    assert "step 60/60" in t5lite("logs", "gke", "--trial=1")
    assert "deleted gke-0000" in t5lite("cancel", "gke")
    assert list(cluster.jobsets) == ["gke-0001", "gke-0002"]
    assert "created 1 JobSet;" in t5lite("resume", "gke")
    # Another launch of the same name, in another folder.
    err = t5lite(*words, f"--dir={tmp_path}/other", command=train, code=2)
    assert "belongs to another launch" in err
    assert err.count("\n") == 1


@needs_kubectl
def test_a_missing_cluster_is_one_line(cluster, t5lite, tmp_path):
    cluster.environment["KUBECONFIG"] = str(tmp_path / "nothing")
    err = t5lite(*t5lite.new, "--name=gke", command=[*TRAIN, "--gin.STEPS=3"], code=2)
    assert err.startswith("t5lite: kubectl: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "gke").exists()

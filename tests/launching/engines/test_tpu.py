"""Trials on TPU slices: the real gcloud and ssh, against a fake API and workers on loopback."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from t5lite.core.run_directory import outcomes, read_attempts, read_metrics
from t5lite.launching.engines.shipping import build_wheel
from tests import small
from tests.launching.engines.test_slurm import TRAIN
from tests.launching.engines.tpu_cloud import Cloud, free_port, missing, wait

ROOT = pathlib.Path(__file__).parent.parent.parent.parent
needs_cloud = pytest.mark.skipif(
    bool(missing()) or os.geteuid() != 0, reason=f"needs root and {', '.join(missing()) or 'more'}"
)
pytestmark = [pytest.mark.proof, needs_cloud]
OFTEN = "--gin.train.checkpoint_every_steps=10"
# The shipped wheel comes before the package of this environment.
SETUP = """
echo set up >> "$HOME/setups"
if [ ! -e "$HOME/site/t5lite" ]; then
    {python} -m pip install --quiet --no-deps --target "$HOME/site" "$T5LITE_WHEEL"
fi
mkdir -p "$HOME/bin"
printf '#!/bin/sh\nexec {python} -m t5lite "$@"\n' > "$HOME/bin/t5lite"
chmod +x "$HOME/bin/t5lite"
export PYTHONPATH="$HOME/site" PATH="$HOME/bin:$PATH"
"""


@pytest.fixture
def cloud(tmp_path, one_device):
    environment = {**one_device, "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    cloud = Cloud(tmp_path / "cloud", environment)
    yield cloud
    cloud.stop()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def t5lite(cloud, tmp_path, wheel):
    setup = tmp_path / "setup.sh"
    setup.write_text(SETUP.replace("{python}", sys.executable))

    def start(*arguments, command=()):
        behind = ["--", *command] if command else []
        return subprocess.Popen(
            [sys.executable, "-m", "t5lite", "launch", *arguments, f"--dir={tmp_path}", *behind],
            cwd=ROOT,
            env={**os.environ, **cloud.environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(*arguments, command=(), code=0):
        process = start(*arguments, command=command)
        out, err = process.communicate(timeout=small.PATIENCE)
        assert process.returncode == code, (out, err)
        return out if code == 0 else err

    run.start = start
    run.new = ("--on=tpu:v5e-8", "--zone=z", f"--setup={setup}", f"--wheel={wheel}")
    return run


def latest(model_dir):
    """Returns the last step that a run has recorded."""
    return max((m["step"] for m in read_metrics(model_dir)), default=0)


def test_a_trial_is_preempted_its_watcher_killed_and_it_finishes(cloud, t5lite, tmp_path):
    # Enough that the run still trains when a slow machine has started `results` and `resume`.
    steps = 1000
    process = t5lite.start(
        # Without --wheel one is built.
        *(*t5lite.new[:-1], "--name=one", "--spot"),
        command=[*TRAIN, f"--gin.STEPS={steps}", OFTEN],
    )
    folder = tmp_path / "one" / "trials" / "0000"
    log = folder / "log.txt"

    def is_running():
        assert process.poll() is None, process.communicate()
        return True

    wait(lambda: is_running() and latest(folder) > 15, 120)
    # Both workers were set up with the wheel.
    assert [
        path.read_text().count("set up") for path in sorted(tmp_path.glob("cloud/*/home/setups"))
    ] == [1, 1]
    assert list(cloud.home(1).glob("site/t5lite"))
    held = dict(cloud.resources["one-0000"])
    cloud.outages = 2
    cloud.preempt("one-0000")
    wait(lambda: is_running() and outcomes(folder)["preempted"] == 1, 60)
    wait(lambda: is_running() and cloud.created == ["one-0000"] * 2, 60)
    wait(lambda: is_running() and latest(folder) > 50, 120)
    # The run outlives its launcher, and `resume` watches it again.
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = latest(folder)
    wait(lambda: latest(folder) > done + 3, 60)
    assert json.loads(t5lite("results", "one", "--json"))["trials"][0]["state"] == "running"
    out = t5lite("resume", "one")
    assert "trial 0: complete" in out
    assert cloud.created == cloud.deleted == ["one-0000"] * 2
    assert not cloud.resources
    counts = outcomes(folder)
    assert (counts["finished"], counts["preempted"], counts["failed"], counts["killed"]) == (
        (1, 1, 0, 0)
    )
    recorded = [m["step"] for m in read_metrics(folder) if m["split"] == "train"]
    assert recorded == list(range(1, steps + 1))
    assert "the slice was preempted" in log.read_text()
    # A slice whose launcher was killed just before it could delete it.
    cloud.resources["one-0000"] = held
    assert "its trial has ended" in t5lite("resume", "one")
    assert not cloud.resources


def test_a_cancelled_trial_saves_and_its_slice_is_deleted(cloud, t5lite, tmp_path):
    process = t5lite.start(*t5lite.new, "--name=two", command=[*TRAIN, "--gin.STEPS=5000"])
    folder = tmp_path / "two" / "trials" / "0000"
    wait(lambda: process.poll() is None and latest(folder) > 3, 120)
    assert "asked to save and stop" in t5lite("cancel", "two")
    _, err = process.communicate(timeout=small.PATIENCE)
    assert process.returncode == 42, err
    assert cloud.deleted == ["two-0000"]
    assert outcomes(folder)["preempted"] == 1
    assert (folder / "checkpoints").exists()
    # The slice of a killed launcher is deleted too, after its run has saved.
    process = t5lite.start("resume", "two")
    wait(lambda: process.poll() is None and len(read_attempts(folder)) == 3, 120)
    steps = latest(folder)
    wait(lambda: latest(folder) > steps + 3, 120)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "deleted two-0000" in t5lite("cancel", "two")
    assert outcomes(folder)["preempted"] == 2
    assert not cloud.resources
    assert "has no slice" in t5lite("cancel", "two")


def test_crashes_count_against_the_budget(cloud, t5lite, tmp_path):
    # Every worker fails before an attempt is recorded.
    broken = tmp_path / "broken.sh"
    broken.write_text("echo no disk >&2; false\n")
    words = ["--on=tpu:v5e-8", "--zone=z", f"--setup={broken}", t5lite.new[-1]]
    err = t5lite(
        *words, "--max_failures=1", "--name=three", command=[*TRAIN, "--gin.STEPS=5"], code=1
    )
    assert "failed: 0; see the logs" in err
    folder = tmp_path / "three" / "trials" / "0000"
    assert outcomes(folder)["failed"] == 2
    assert "no disk" in (folder / "log.txt").read_text()
    assert cloud.created == cloud.deleted == ["three-0000"]


def test_rejections_are_one_line_and_leave_nothing_behind(cloud, t5lite, tmp_path):
    cloud.refused = {
        "code": 429,
        "message": "Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded. Limit: 0.",
        "status": "RESOURCE_EXHAUSTED",
    }
    words = (*t5lite.new, "--name=four")
    err = t5lite(*words, "--max_failures=0", command=[*TRAIN, "--gin.STEPS=5"], code=69)
    quota, missing_resource = err.splitlines()
    assert quota.startswith(
        "t5lite: trial 0: gcloud: (gcloud.compute.tpus.queued-resources.create)"
    )
    assert "Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded" in quota
    assert "a resource is missing for trial 0; see the logs, then resume with: " in missing_resource
    cloud.refused = None
    # Another launch has the same name.
    out = t5lite(*words, "--dry_run", command=[*TRAIN, "--gin.STEPS=5"])
    assert "queued-resources create four-0000 --accelerator-type=v5litepod-8" in out
    assert "--runtime-version=v2-alpha-tpuv5-lite" in out
    assert "tpu-vm ssh four-0000" in out
    assert "--worker=all" in out
    cloud.resources["five-0000"] = {
        "name": "projects/p/locations/z/queuedResources/five-0000",
        "tpu": {"nodeSpec": [{"node": {"labels": {"t5lite": "x"}}, "nodeId": "five-0000"}]},
        "state": {"state": "ACTIVE"},
        "looked": 3,
    }
    words = (*t5lite.new, "--name=five")
    err = t5lite(*words, command=[*TRAIN, "--gin.STEPS=5"], code=2)
    assert "five-0000 exists and belongs to another launch" in err
    words = ("--on=tpu:v5e-8", "--name=eight")
    err = t5lite(*words, command=[*TRAIN, "--gin.STEPS=5"], code=2)
    assert "--on=tpu needs --zone, such as us-east5-a" in err
    outside = tmp_path.parent / "my.gin"
    outside.write_text("")
    words = (*t5lite.new, "--name=nine")
    err = t5lite(*words, command=[*TRAIN, f"--gin_file={outside}", "--gin.STEPS=5"], code=2)
    assert f"workers would not find --gin_file={outside}: name a file below {ROOT}" in err
    words = (*t5lite.new, "--name=six", "--options=--spott")
    err = t5lite(*words, command=[*TRAIN, "--gin.STEPS=5"], code=2)
    assert "gcloud would reject gcloud compute tpus queued-resources create six-0000" in err
    assert "unrecognized arguments: --spott (did you mean '--spot'?)" in err
    assert not (tmp_path / "six").exists()
    del cloud.environment["CLOUDSDK_AUTH_DISABLE_CREDENTIALS"]
    words = (*t5lite.new, "--name=seven")
    err = t5lite(*words, command=[*TRAIN, "--gin.STEPS=5"], code=2)
    assert "You do not currently have an active account selected." in err
    assert err.count("\n") == 1
    assert not cloud.created
    assert not (tmp_path / "seven").exists()

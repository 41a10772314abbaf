"""An engine from outside the package, by `--on=module:Class`, runs a sweep end to end."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from t5lite.core.run_directory import outcomes, read_metrics
from tests.launching.engines.test_slurm import TRAIN
from tests.launching.engines.tpu_cloud import wait

ROOT = pathlib.Path(__file__).parent.parent.parent.parent
ON = "--on=job_queue:JobQueueEngine"


@pytest.fixture
def t5lite(tmp_path, one_device):
    """Runs a command in a folder that holds the engine's module."""
    shutil.copy(pathlib.Path(__file__).with_name("job_queue.py"), tmp_path)

    def run(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "t5lite", "launch", *arguments],
            cwd=tmp_path,
            env={**os.environ, **one_device, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr

    return run


def trials(t5lite, *words):
    return json.loads(t5lite(*words, "--json"))["trials"]


@pytest.mark.proof
def test_a_sweep_runs_by_an_engine_of_the_users_own(t5lite, tmp_path):
    words = [ON, "--niceness=3", "--name=own", "--sweep=train.seed=range(2)"]
    train = ["--", *TRAIN, "--gin.STEPS=300"]
    assert "0001.job: " in t5lite(*words, "--dry_run", *train)
    assert "queued 2 jobs" in t5lite(*words, *train)
    folder = tmp_path / "runs" / "own" / "trials" / "0000"
    wait(lambda: len(read_metrics(folder)) > 5, 120)
    assert [trial["state"] for trial in trials(t5lite, "status", "own")] == ["running", "queued"]
    assert "emptied the queue" in t5lite("cancel", "own")
    wait(lambda: outcomes(folder)["preempted"] == 1, 60)
    assert "queued 2 jobs" in t5lite("resume", "own")
    wait(lambda: len(list(folder.parent.glob("*/result.json"))) == 2, 120)
    wait(lambda: not list((folder.parent.parent / "jobs").glob("*.running")), 60)
    found = trials(t5lite, "results", "own")
    assert [(trial["state"], trial["step"]) for trial in found] == [("complete", 300)] * 2
    assert len({trial["value"] for trial in found}) == 2
    assert [m["step"] for m in read_metrics(folder) if m["split"] == "train"] == [*range(1, 301)]
    assert "all 2 trials have ended" in t5lite("resume", "own")


def test_the_resources_of_an_outside_engine_are_flags(t5lite):
    assert "--niceness  Niceness of the trial's processes" in t5lite(ON, "--help")
    words = ["--name=own", "--", *TRAIN]
    assert "--nodes is for --on=slurm, got job_queue:JobQueueEngine" in t5lite(
        ON, "--nodes=2", *words, code=2
    )
    assert "--on: 'job_queue:JobQueue' cannot be imported: module 'job_queue' has no" in t5lite(
        "--on=job_queue:JobQueue", *words, code=2
    )
    assert "--on: 'job_queue:work' must be a subclass of Engine" in t5lite(
        "--on=job_queue:work", *words, code=2
    )

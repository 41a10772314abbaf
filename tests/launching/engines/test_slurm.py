"""Sweeps on a real Slurm: preemption, crashes, dead nodes, cancelling."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from t5lite.core.run_directory import outcomes, read_attempts, read_metrics
from tests import small
from tests.launching.engines.slurm_cluster import Cluster, missing

ROOT = pathlib.Path(__file__).parent.parent.parent.parent
needs_slurm = pytest.mark.skipif(
    bool(missing()) or os.geteuid() != 0,
    reason="needs root and Slurm's programs (apt-get install slurmctld slurmd slurm-client "
    "slurm-wlm-basic-plugins munge)",
)
pytestmark = [pytest.mark.proof, needs_slurm]
TRAIN = [
    *small.QUICKSTART,
    "--gin.train.show_examples=0",
    "--gin.train.checkpoint_every_steps=100",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


@pytest.fixture
def t5lite(cluster, tmp_path, one_device):
    """Runs a command of launch on the cluster, with launches below `tmp_path`."""
    environment = {**cluster.environment, **one_device}

    def run(*arguments, command=(), code=0):
        own = [f"--dir={tmp_path}", *arguments]
        behind = ["--", *command] if command else []
        done = subprocess.run(
            [sys.executable, "-m", "t5lite", "launch", *own, *behind],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout

    return run


def trials(t5lite, name, *words):
    return json.loads(t5lite(*words, "results", name, "--json"))["trials"]


def has_steps(model_dir, steps):
    return len([m for m in read_metrics(model_dir) if m["split"] == "train"]) >= steps


def is_second(model_dir):
    """Whether a run is in its second attempt."""
    last = read_attempts(model_dir)[-1]
    return last["attempt"] == 2 and "began" in last


def kill_trainer(model_dir):
    """Kills the process that trains in a folder."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if f"--gin.MODEL_DIR={model_dir}" in words and "srun" not in words[0]:
            os.kill(int(path.parent.name), signal.SIGKILL)


def test_a_sweep_is_preempted_and_finishes(cluster, t5lite, tmp_path):
    out = t5lite(
        *("--on=slurm:spot", "--name=sweep", "--options=--exclusive"),
        "--sweep=train.seed=range(5)",
        command=[*TRAIN, "--gin.STEPS=400"],
    )
    job = out.partition("submitted as job ")[2].partition(";")[0]
    folders = [tmp_path / "sweep" / "trials" / f"{number:04d}" for number in range(5)]
    # Some have been evaluated and are about to train.
    cluster.wait(lambda: any(read_metrics(folder) for folder in folders), 120)
    urgent = ["--partition=prod", "--nodes=4", "--exclusive", "--output=/dev/null"]
    cluster.run("sbatch", *urgent, "--wrap=sleep 3")
    # Resumed, nothing is submitted twice.
    assert "all remaining trials are in Slurm" in t5lite("resume", "sweep")
    cluster.wait(lambda: len(list((tmp_path / "sweep").glob("trials/*/result.json"))) == 5, 400)
    cluster.wait(lambda: not cluster.run("squeue", "-h", "-j", job).strip(), 60)
    rows = trials(t5lite, "sweep")
    assert [row["state"] for row in rows] == ["complete"] * 5
    assert [row["step"] for row in rows] == [400] * 5
    assert sum(row["preempted"] for row in rows) >= 1
    assert sum(row["failed"] for row in rows) == 0
    assert len({tuple(row["params"].items()) for row in rows}) == 5
    assert len({row["value"] for row in rows}) == 5
    for folder in folders:
        assert outcomes(folder)["finished"] == 1
        steps = [m["step"] for m in read_metrics(folder) if m["split"] == "train"]
        assert steps == list(range(1, 401))
    states = cluster.run("squeue", "--states=all", "-h", "-j", job, "-o", "%T").split()
    assert set(states) == {"COMPLETED"}


def test_crashes_count_against_a_budget_and_dead_nodes_are_replaced(cluster, t5lite, tmp_path):
    t5lite(
        *("--on=slurm:spot", "--name=crash", "--options=--exclusive", "--max_failures=1"),
        "--sweep=train.seed=range(3)",
        command=[*TRAIN, "--gin.STEPS=400"],
    )
    folders = [tmp_path / "crash" / "trials" / f"{number:04d}" for number in range(3)]
    for folder in folders:
        cluster.wait(lambda folder=folder: has_steps(folder, 3), 120)
    node = cluster.run("squeue", "-h", "-n", "crash", "-o", "%K %N")
    nodes = dict(line.split() for line in node.splitlines())
    kill_trainer(folders[0])
    kill_trainer(folders[1])
    cluster.kill_node(int(nodes["2"].rpartition(".")[2]))
    # The second trial crashes once more.
    cluster.wait(lambda: is_second(folders[1]), 200)
    kill_trainer(folders[1])

    def states():
        return [row["state"] for row in trials(t5lite, "crash")]

    cluster.wait(lambda: states() == ["complete", "failed", "complete"], 400)
    first, second, third = trials(t5lite, "crash")
    assert (first["step"], first["failed"], first["preempted"]) == (400, 1, 0)
    assert second["failed"] == 2
    assert (third["step"], third["failed"]) == (400, 1)
    cluster.start_node(int(nodes["2"].rpartition(".")[2]))
    # A failed trial does not restart.
    assert "all 3 trials have ended" in t5lite("resume", "crash", code=1)


def test_a_cancelled_trial_resumes(cluster, t5lite, tmp_path):
    # A folder that shells and Slurm would expand.
    there = f"--dir={tmp_path}/my 50%a $HOME runs"
    t5lite(there, "--on=slurm:spot", "--name=one", command=[*TRAIN, "--gin.STEPS=700"])
    folder = tmp_path / "my 50%a $HOME runs" / "one" / "trials" / "0000"
    cluster.wait(lambda: has_steps(folder, 3), 120)
    assert "cancelled" in t5lite(there, "cancel", "one")
    cluster.wait(lambda: trials(t5lite, "one", there)[0]["state"] == "interrupted", 60)
    assert "submitted as job" in t5lite(there, "resume", "one")
    cluster.wait(lambda: trials(t5lite, "one", there)[0]["state"] == "complete", 200)
    assert outcomes(folder)["finished"] == 1
    assert "step 700/700" in t5lite(there, "logs", "one", "--trial=0")

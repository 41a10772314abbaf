"""Parts from a user's own code, bound in gin, in one run from the command line."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from t5lite.core.numbers import as_inputs
from t5lite.core.run_directory import read_metrics
from t5lite.training.slot import VectorizedTrial
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small
from tests.conftest import COMPILE_FAST
from tests.training.own_parts import FocalLoss

# The command line trains once for most of them.
pytestmark = pytest.mark.proof

ROOT = pathlib.Path(__file__).parent.parent.parent
OWN = "tests.training.own_parts"


@pytest.fixture(scope="module")
def own_run(data_dir, programs_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    arguments = [
        *(flag for flag in small.QUICKSTART if "Cosine" not in flag),
        f"--gin.MODEL_DIR={folder}",
        "--gin.STEPS=4",
        "--gin.train.eval_every_steps=2",
        "--gin.train.show_examples=0",
        f"--gin.train.loss=@{OWN}:FocalLoss()",
        f"--gin.{OWN}:FocalLoss.gamma=1.5",
        f"--gin.train.writers=[@JsonLines(), @{OWN}:Csv()]",
        f"--gin.AdamW.learning_rate={OWN}:triangle",
        "--gin.train.trainable=['decoder/.*', 'token_embedder/.*']",
    ]
    environment = {
        "TFDS_DATA_DIR": data_dir,
        "JAX_NUM_CPU_DEVICES": "1",
        "XLA_FLAGS": COMPILE_FAST,
        "JAX_COMPILATION_CACHE_DIR": str(programs_dir),
    }
    done = subprocess.run(
        [sys.executable, "-m", "t5lite", "train", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_a_loss_of_ones_own_trains_and_reports_its_metric(own_run):
    lines = read_metrics(own_run)
    trained = [m for m in lines if m["split"] == "train"]
    scored = [m for m in lines if m["split"] == small.EVALUATED]
    assert [m["step"] for m in trained] == [1, 2, 3, 4]
    assert [m["step"] for m in scored] == [0, 2, 4]
    for line in lines:
        assert 0.0 < line["focus_fraction"] < 1.0
        # gamma > 0 lowers the weight of every token.
        assert 0.0 < line["loss_nats_per_token"] < line["cross_entropy_nats_per_token"]
    assert scored[-1]["loss_nats_per_token"] < scored[0]["loss_nats_per_token"]
    assert "perplexity" in scored[0]


def test_a_writer_of_ones_own_records_the_run(own_run):
    with (own_run / "metrics.csv").open(newline="") as file:
        first, *rows = csv.reader(file)
    assert first == ["0", "command", "", "t5lite"]
    recorded = {(int(s), split, name): float(value) for s, split, name, value in rows}
    wanted = {
        (line["step"], line["split"], name): value
        for line in read_metrics(own_run)
        for name, value in line.items()
        if name not in ("step", "split")
    }
    assert recorded == wanted
    assert not (own_run / "tensorboard").exists()


def test_a_schedule_of_ones_own_sets_the_learning_rate(own_run):
    rates = [m["learning_rate"] for m in read_metrics(own_run) if m["split"] == "train"]
    np.testing.assert_allclose(rates, [0.001, 0.002, 0.003, 0.004], rtol=1e-6)


def test_the_configuration_of_parts_of_ones_own_can_be_loaded_again(own_run):
    text = (own_run / "config.gin").read_text()
    assert f"train.loss = @{OWN}:FocalLoss()" in text
    assert json.loads((own_run / "environment.json").read_text())["command"][0] == "t5lite"


def test_trials_differ_in_the_number_of_a_loss_of_ones_own(make_run, tmp_path):
    runs = [
        make_run(
            tmp_path / f"{gamma}",
            loss=FocalLoss(gamma=gamma),
            total_steps=2,
            trainable=["decoder/.*"],
        )
        for gamma in (0.0, 2.0)
    ]
    trials = (VectorizedTrial(run=run, config_text="", command=["t5lite"]) for run in runs)
    small.train_vectorized(trials, 2, small.mesh(runs[0]), evaluate=small.evaluate_of)
    first, second = (read_metrics(tmp_path / name)[1] for name in ("0.0", "2.0"))
    # Without focus the loss is the cross-entropy.
    assert first["loss_nats_per_token"] == pytest.approx(
        first["cross_entropy_nats_per_token"], rel=1e-5
    )
    assert second["loss_nats_per_token"] < second["cross_entropy_nats_per_token"]
    assert len(as_inputs(runs[0].loss).gamma.shape) == 0
    checkpoints = StoredCheckpoints(tmp_path / "0.0" / "checkpoints")
    trained = checkpoints.about(2)["trainable"]
    assert trained
    assert all(name.startswith("decoder/") for name in trained)

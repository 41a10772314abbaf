"""Real processes on this machine, with collectives between them."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from t5lite.core.run_directory import read_metrics
from t5lite.training.good_checkpoints import read_history
from tests import small
from tests.conftest import COMPILE_FAST

pytestmark = pytest.mark.proof
ROOT = pathlib.Path(__file__).parent.parent.parent
# Processes add gradients up in another order than the devices of one process.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def in_processes(text_file, data_dir):
    """Runs `one_of_many` in so many processes, eight devices in all; returns the state's digest,
    and what they printed as errors."""

    def start(count, action, model_dir):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = {"XLA_FLAGS": COMPILE_FAST, "JAX_NUM_CPU_DEVICES": str(8 // count)}
        arguments = (count, address, action, text_file, data_dir, model_dir)
        ended = subprocess.run(
            [sys.executable, "-m", "tests.training.one_of_many", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            text=True,
            capture_output=True,
            timeout=small.PATIENCE,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        state = next(line for line in ended.stdout.splitlines() if line.startswith("state "))
        return state, ended.stderr

    return start


@pytest.fixture(scope="module")
def of_one(in_processes, tmp_path_factory):
    """Where one process has trained."""
    model_dir = tmp_path_factory.mktemp("one")
    in_processes(1, "train", model_dir)
    return model_dir


@pytest.fixture(scope="module")
def of_many(in_processes, tmp_path_factory):
    """Where four have, and the state that they ended with."""
    model_dir = tmp_path_factory.mktemp("many")
    return model_dir, in_processes(4, "train", model_dir)[0]


def assert_same_losses(model_dir, other_dir):
    metrics, wanted = read_metrics(model_dir), read_metrics(other_dir)
    assert [m["step"] for m in metrics] == [m["step"] for m in wanted]
    for name in ("loss_nats_per_token", "gradient_norm"):
        pairs = [(m[name], w[name]) for m, w in zip(metrics, wanted, strict=True) if name in w]
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=ROUNDING)
    # Sums of whole numbers, so exact: the batches are the same.
    assert [m.get("target_tokens") for m in metrics] == [m.get("target_tokens") for m in wanted]


def test_many_processes_train_as_one(of_many, of_one):
    assert_same_losses(of_many[0], of_one)


def test_all_processes_return_to_the_same_good_checkpoint(in_processes, tmp_path):
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        in_processes(count, "train_with_bad_batches", tmp_path / str(count))
    assert_same_losses(tmp_path / "2", tmp_path / "1")
    histories = [read_history(tmp_path / count / "checkpoints") for count in ("1", "2")]
    assert histories[0] == histories[1]
    assert histories[0].skipped(0) == [(1, 5)]


def test_all_processes_fall_back_if_one_cannot_read_a_checkpoint(in_processes, of_many, tmp_path):
    model_dir, state = of_many
    run = tmp_path / "run"
    shutil.copytree(model_dir, run)
    again, err = in_processes(2, "train_with_a_stale_mount", run)
    assert again == state
    assert (run / "damaged_checkpoints" / "4").is_dir()
    # The first process, which can read its part, names the other and the reason.
    problem = f"process 1 on {socket.gethostname()} cannot read it: [Errno 116] Stale file handle"
    warning = f"WARNING: checkpoint {run}/checkpoints/4 is damaged: {problem}; moved to"
    assert err.count(warning) == 1


# By two: the test above.
@pytest.mark.parametrize("count", [1, 8])
def test_a_checkpoint_of_many_processes_is_restored_by_any_number(count, in_processes, of_many):
    model_dir, state = of_many
    assert in_processes(count, "restore", model_dir)[0] == state

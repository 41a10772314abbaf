"""Commands of two processes, one of which is killed while both compute."""

import json
import shutil
import signal
import socket
import time

import pytest

from t5lite.core.run_directory import outcomes
from tests import small
from tests.cli.test_commands import SMALL

pytestmark = pytest.mark.proof
# More requests than two processes answer before one is killed.
REQUESTS = 20_000


@pytest.fixture
def kill_one(t5lite):
    """Runs a command in two processes and kills the second once `is_time()`; returns the errors of
    the first and its status."""
    started = []

    def run(*arguments, is_time):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        together = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        for index in range(2):
            environment = {**together, "JAX_PROCESS_ID": str(index)}
            started.append(t5lite.start(*arguments, environment=environment))
        first, second = started
        while not is_time():
            assert first.poll() is None, first.communicate()
            assert second.poll() is None, second.communicate()
            time.sleep(0.05)
        second.send_signal(signal.SIGKILL)
        _, err = first.communicate(timeout=small.PATIENCE)
        return err.splitlines(), first.returncode

    yield run
    for process in started:
        process.kill()
        process.communicate()


def assert_named(lines, status):
    """Checks that the last line names the process, and that there is no traceback."""
    name = f"process 1 of 2 on {socket.gethostname()}"
    assert lines[-1] == (
        f"t5lite: {name} has ended before the others; read its log, and restart to resume"
    )
    assert not any("Traceback" in line for line in lines)
    assert status == 69


def count_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_train_names_a_lost_process(kill_one, tmp_path):
    lines, status = kill_one(
        *("train", *SMALL, "--gin.STEPS=1000000", f"--gin.MODEL_DIR={tmp_path}"),
        *("--gin.train.checkpoint_every_steps=1000000", "--gin.train.log_every_steps=1"),
        is_time=lambda: count_lines(tmp_path / "metrics.jsonl") > 3,
    )
    assert_named(lines, status)
    assert outcomes(tmp_path)["unavailable"] == 1


def test_eval_names_a_lost_process(kill_one, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("eval"))
    # It waits for a checkpoint that never comes.
    lines, status = kill_one(
        *("eval", f"--checkpoint={run}", "--watch", "--gin.train.total_steps=1000"),
        is_time=lambda: count_lines(run / "eval" / f"{small.EVALUATED}.jsonl") == 3,
    )
    assert_named(lines, status)


def test_infer_names_a_lost_process(kill_one, trained, tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text(
        "".join(json.dumps({"inputs": f"<extra_id_0> {n}"}) + "\n" for n in range(REQUESTS))
    )
    lines, status = kill_one(
        *("infer", f"--checkpoint={trained}", f"--input={asked}"),
        *(f"--output={tmp_path / 'out.jsonl'}", "--gin.infer.chunk_size=32"),
        "--gin.infer.targets_length=8",
        is_time=lambda: count_lines(tmp_path / "out.jsonl.partial") > 0,
    )
    assert_named(lines, status)

"""Real processes, one of which dies or stops."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from t5lite.core.run_directory import outcomes
from tests import small

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def start(tmp_path, one_device):
    """Starts so many processes and returns them once all take steps together."""
    started = []

    def run(count):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        for index in range(count):
            environment = {
                **os.environ,
                **one_device,
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.parallel.one_peer", str(tmp_path)],
                    cwd=ROOT,
                    env=environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
        for process in started:
            # Gloo prints, too.
            assert "step\n" in process.stdout
        return started

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.proof
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize(("count", "lost"), [(2, 1), (4, 2), (2, 0)])
def test_all_processes_end_with_one_line_if_one_is_lost(count, lost, number, start, tmp_path):
    processes = start(count)
    processes[lost].send_signal(number)
    host = "localhost" if lost == 0 else socket.gethostname()
    name = f"process {lost} of {count} on {host}"
    for index, process in enumerate(processes):
        if index == lost:
            continue
        _, err = process.communicate(timeout=small.PATIENCE)
        (line,) = err.splitlines()
        assert line.startswith(f"t5lite: {name} has ")
        assert line.endswith("; read its log, and restart to resume")
        assert process.returncode == 69
    # An attempt without an outcome, because its process was killed, counts as killed.
    assert outcomes(tmp_path)["unavailable" if lost else "killed"] == 1

import concurrent.futures
import os
import socket
import subprocess
import sys
import time

import pytest

from t5lite.core.errors import UserError
from t5lite.parallel import processes
from t5lite.parallel.processes import roll_call, start_processes
from tests import small


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def present(*arguments):
    """Takes part in a roll call and closes the connections of it; returns the names of hosts."""
    links, hosts = roll_call(*arguments)
    for link in links.values():
        link.close()
    return hosts


def call(address, count, indices, seconds):
    """The error of each of the processes `indices`, or None."""
    with concurrent.futures.ThreadPoolExecutor(len(indices)) as pool:
        made = [pool.submit(present, address, count, index, seconds) for index in indices]
        return [future.exception() for future in made]


def test_all_processes_continue_once_all_have_started(address):
    assert call(address, 4, [3, 1, 0, 2], 200.0) == [None] * 4


def test_missing_processes_are_named_in_all_others(address):
    errors = call(address, 5, [0, 2, 3], 1.0)
    assert {str(error).split(";")[0] for error in errors} == {
        "processes 1, 4 of 5 did not start within 1 seconds"
    }
    assert all(isinstance(error, UserError) for error in errors)


def test_a_missing_first_process_is_named(address):
    (error,) = call(address, 2, [1], 1.0)
    assert str(error).startswith(f"process 0 of 2 at {address} did not start within 1 seconds")


def test_a_stranger_is_not_counted(address):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(present, address, 2, 0, 3.0)
        host, port = address.split(":")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            try:
                with socket.create_connection((host, int(port))) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        assert "process 1 of 2" in str(first.exception())


def test_a_silent_stranger_does_not_delay_the_job(address):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(present, address, 2, 0, 80.0)
        host, port = address.split(":")
        while True:
            try:
                silent = socket.create_connection((host, int(port)))
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        second = pool.submit(present, address, 2, 1, 80.0)
        assert (first.exception(), second.exception()) == (None, None)
        silent.close()


def test_a_port_in_use_is_named(address):
    in_use = pytest.raises(UserError, match="process 0 cannot listen at port .* set another")
    with socket.create_server(("", int(address.split(":")[1]))), in_use:
        roll_call(address, 2, 0, 1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS is required with JAX_NUM"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_ID": "0"},
            "JAX_NUM_PROCESSES is required",
        ),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES and JAX_PROCESS_ID are required"),
        ({"OMPI_MCA_orte_hnp_uri": "x"}, "the processes of this job cannot be detected"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_ID": "2", "JAX_NUM_PROCESSES": "2"},
            r"JAX_PROCESS_ID must be under JAX_NUM_PROCESSES \(2\), got 2",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a", "JAX_PROCESS_ID": "0", "JAX_NUM_PROCESSES": "2"},
            "must be HOST:PORT of process 0, got 'a'",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_ID": "0", "JAX_NUM_PROCESSES": "x"},
            "JAX_NUM_PROCESSES must be a whole number >= 1, got 'x'",
        ),
        ({"T5LITE_START_TIMEOUT_SECONDS": "0"}, "must be a whole number >= 1, got '0'"),
    ],
)
def test_incomplete_or_wrong_variables_are_rejected(given, message, monkeypatch):
    for name in (processes.ADDRESS, processes.COUNT, processes.PROCESS_ID):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        start_processes()


def test_a_process_without_variables_runs_alone(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "")
    start_processes()


TELLS = """
import jax
from t5lite.parallel.processes import start_processes
start_processes()
print(jax.process_index(), jax.process_count())
"""


@pytest.mark.proof
def test_processes_are_detected_under_slurm():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for index in range(2):
        slurm = {
            "SLURM_JOB_ID": "7",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(index),
            "SLURM_LOCALID": str(index),
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_STEP_NUM_NODES": "1",
            "JAX_COORDINATOR_PORT": str(port),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", TELLS],
                env={**os.environ, **slurm},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=small.PATIENCE) for process in processes]
    assert [out.splitlines()[-1] for out, _ in outputs] == ["0 2", "1 2"], told

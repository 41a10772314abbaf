"""Several processes as one program: their indices, and a check that all of them have started."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.core.errors import Unavailable, UserError

# Environment variables that set the process by hand. JAX itself reads the first.
ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT = "JAX_NUM_PROCESSES"
PROCESS_ID = "JAX_PROCESS_ID"
# How long processes wait for each other at the start.
TIMEOUT = "T5LITE_START_TIMEOUT_SECONDS"
# A process without a heartbeat for this long counts as dead, and all others end.
HEARTBEAT_SECONDS = 30
# The time in which all processes end after one has failed.
SHUTDOWN_SECONDS = 60
# The time in which a process that connects must identify itself.
IDENTIFY_SECONDS = 1.0


def start_processes() -> None:
    """Connects this process with the others of its job, if the environment describes any.

    Call it before JAX initializes its devices. JAX reads the environments of Slurm and Cloud TPU,
    and with further packages those of Open MPI and Kubernetes. Set by hand, the variables
    JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID take
    precedence. Without any of them, or with JAX_NUM_PROCESSES=1, the process runs alone.

    Raises:
        UserError: if one of the three variables is missing or out of range, the environment cannot
            be read, or a process does not start within T5LITE_START_TIMEOUT_SECONDS (300 if not
            set).
    """
    seconds = _whole_number(TIMEOUT, os.environ.get(TIMEOUT) or "300", least=1)
    if not os.environ.get(ADDRESS):
        # JAX would use an empty value as an address.
        os.environ.pop(ADDRESS, None)
    if (os.environ.get(COUNT) or "") == "1":
        return
    found: Any = _by_hand(os.environ) or _detected(seconds)
    address, count, index, local_devices = found
    if count is None or index is None:
        if address is not None:
            raise UserError(f"{COUNT} and {PROCESS_ID} are required with {ADDRESS}")
        return
    if count == 1:
        return
    roll_call(address, count, index, seconds)
    jax.distributed.initialize(
        address,
        count,
        index,
        local_devices,
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )


def everywhere(holds: bool) -> bool:
    """Whether `holds` is true in all processes; all of them must call it."""
    return bool(np.all(multihost_utils.process_allgather(np.bool_(holds))))


def _detected(seconds: int) -> Any:
    """Returns address, count, index and local devices as JAX detects them; None if it cannot."""
    # NOTE: JAX detects them only while it connects, and then aborts with a stack trace if a process
    # is missing. This is the function that it calls.
    from jax._src.clusters import ClusterEnv

    given = os.environ.get(ADDRESS)
    try:
        return ClusterEnv.auto_detect_unset_distributed_params(
            given, None, None, None, None, seconds
        )
    except (RuntimeError, ImportError, ValueError, KeyError, IndexError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the processes of this job cannot be detected: {reason}; set {ADDRESS}, {COUNT} and "
            f"{PROCESS_ID}, or {COUNT}=1 to run alone"
        ) from error


def _by_hand(environment: Mapping[str, str]) -> tuple[str, int, int, None] | None:
    given = {name: environment.get(name) for name in (ADDRESS, COUNT, PROCESS_ID)}
    address, count, index = given.values()
    if count is None and index is None:
        return None
    if address is None or count is None or index is None:
        missing = next(name for name, value in given.items() if value is None)
        raise UserError(
            f"{missing} is required with {', '.join(n for n in given if n != missing)}; set all "
            "three"
        )
    number = _whole_number(COUNT, count, least=1)
    own_index = _whole_number(PROCESS_ID, index, least=0)
    if own_index >= number:
        raise UserError(f"{PROCESS_ID} must be under {COUNT} ({number}), got {own_index}")
    _host_and_port(address)
    return address, number, own_index, None


def _whole_number(name: str, text: str, *, least: int) -> int:
    if not text.isdigit() or int(text) < least:
        raise UserError(f"{name} must be a whole number >= {least}, got {text!r}")
    return int(text)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{ADDRESS} must be HOST:PORT of process 0, got {address!r}")
    return host.strip("[]"), int(port)


def roll_call(address: str, count: int, index: int, seconds: float) -> None:
    """Returns when all processes of a job have called it.

    Process 0 listens at the address that JAX uses afterwards. The other processes send their index,
    and process 0 answers when all have connected, or at the deadline.

    Args:
        address: HOST:PORT of process 0.
        count: number of processes.
        index: of this process.
        seconds: until the deadline.

    Raises:
        Unavailable: in every process that called it, naming those that did not.
    """
    deadline = time.monotonic() + seconds
    host, port = _host_and_port(address)
    answer = (
        _call(port, count, deadline) if index == 0 else _present(host, port, count, index, deadline)
    )
    if answer:
        raise Unavailable(
            f"{answer} did not start within {seconds:g} seconds; read its log, or set {TIMEOUT} "
            "to wait longer"
        )


def _call(port: int, count: int, deadline: float) -> str:
    """Waits for processes 1 to count - 1; returns which are missing, "" if none is."""
    with contextlib.ExitStack() as stack:
        try:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            listener = stack.enter_context(
                socket.create_server(("", port), family=family, dualstack_ipv6=both)
            )
        except OSError as error:
            raise Unavailable(
                f"process 0 cannot listen at port {port}: {error.strerror}; set another port in "
                f"{ADDRESS}, or in JAX_COORDINATOR_PORT if the former is not set"
            ) from error
        present: dict[int, socket.socket] = {}
        while len(present) < count - 1 and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            with _ignored_errors():
                peer = stack.enter_context(listener.accept()[0])
                # A stranger that connects and sends nothing must not delay the job.
                peer.settimeout(IDENTIFY_SECONDS)
                words = peer.makefile("rb").readline(100).split()
                if len(words) == 2 and words[0] == b"%d" % count and words[1].isdigit():
                    present[int(words[1])] = peer
        missing = [str(i) for i in range(1, count) if i not in present]
        plural = "es" if len(missing) > 1 else ""
        answer = f"process{plural} {', '.join(missing)} of {count}" if missing else ""
        for peer in present.values():
            with contextlib.suppress(OSError):
                peer.sendall(f"{answer}\n".encode())
        return answer


def _present(host: str, port: int, count: int, index: int, deadline: float) -> str:
    """Reports process `index` to process 0 and returns its answer."""
    while (left := deadline - time.monotonic()) > 0:
        with _ignored_errors(), socket.create_connection((host, port), timeout=left) as peer:
            peer.sendall(f"{count} {index}\n".encode())
            # Process 0 answers at its own deadline, which may be a little later.
            peer.settimeout(left + 10)
            if answer := peer.makefile("rb").readline(100_000):
                return answer.decode().strip()
        time.sleep(0.2)
    return f"process 0 of {count} at {host}:{port}"


@contextlib.contextmanager
def _ignored_errors() -> Iterator[None]:
    """Ignores network errors, because a process that has not started yet may start later."""
    with contextlib.suppress(OSError):
        yield

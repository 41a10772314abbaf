"""Several processes as one program: who they are, and that all of them are there."""

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

# The names by which a process is told by hand who it is. JAX itself reads the first.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# How long processes wait for each other at the start.
TIMEOUT = "T5LITE_START_TIMEOUT_SECONDS"
# A process that says nothing for so long is taken for dead, and all end.
HEARTBEAT_SECONDS = 30
# In which all end when one has: where it failed the others wait for it, and it for them.
SHUTDOWN_SECONDS = 60
SAYS_WITHIN_SECONDS = 1.0


def start_processes() -> None:
    """Joins this process with the others of its job, if its environment tells of any.

    Call it before JAX has seen a device. Who it is a process is told by what JAX can read: Slurm,
    Cloud TPU, and with further packages Open MPI and Kubernetes; or by hand, which goes first, with
    JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without
    any of them the process is on its own, as it is with JAX_NUM_PROCESSES=1.

    Raises:
        UserError: where one of the three is missing or out of range, what tells of the processes
            cannot be read, or one does not come within T5LITE_START_TIMEOUT_SECONDS (300 if not
            set).
    """
    seconds = _whole_number(TIMEOUT, os.environ.get(TIMEOUT) or "300", least=1)
    if not os.environ.get(ADDRESS):
        # Set and empty it would pass for an address.
        os.environ.pop(ADDRESS, None)
    if (os.environ.get(COUNT) or "") == "1":
        return
    found: Any = _by_hand(os.environ) or _detected(seconds)
    address, count, index, local_devices = found
    if count is None or index is None:
        if address is not None:
            raise UserError(f"{COUNT} and {INDEX} are needed besides {ADDRESS}")
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
    """Whether something holds in all processes, each of which has to ask."""
    return bool(np.all(multihost_utils.process_allgather(np.bool_(holds))))


def _detected(seconds: int) -> Any:
    """Address, count, index and local devices as JAX finds them, all None where it finds none."""
    # NOTE: JAX tells who is where only while it connects, and ends the process with a stack trace
    # where one is missing; this is what it asks.
    from jax._src.clusters import ClusterEnv

    given = os.environ.get(ADDRESS)
    try:
        return ClusterEnv.auto_detect_unset_distributed_params(
            *(given, None, None, None, None), seconds
        )
    except (RuntimeError, ImportError, ValueError, KeyError, IndexError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the processes of this job cannot be told: {reason}; set {ADDRESS}, {COUNT} and "
            f"{INDEX}, or {COUNT}=1 to run alone"
        ) from error


def _by_hand(environment: Mapping[str, str]) -> tuple[str, int, int, None] | None:
    given = {name: environment.get(name) for name in (ADDRESS, COUNT, INDEX)}
    address, count, index = given.values()
    if count is None and index is None:
        return None
    if address is None or count is None or index is None:
        missing = next(name for name, value in given.items() if value is None)
        raise UserError(
            f"{missing} is needed besides {', '.join(n for n in given if n != missing)}: a process "
            "is told of the others by all three"
        )
    number = _whole_number(COUNT, count, least=1)
    place = _whole_number(INDEX, index, least=0)
    if place >= number:
        raise UserError(f"{INDEX} must be under {COUNT} ({number}), got {place}")
    _host_and_port(address)
    return address, number, place, None


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
    """Returns once all processes of a job have called it.

    Process 0 listens at the address that it will need afterwards for JAX, the others tell it their
    numbers, and when all have come, or time is up, it tells them.

    Args:
        address: HOST:PORT of process 0.
        count: of processes.
        index: of this one.
        seconds: how long it waits.

    Raises:
        Unavailable: in every process that came, naming those that did not.
    """
    deadline = time.monotonic() + seconds
    host, port = _host_and_port(address)
    answer = (
        _call(port, count, deadline) if index == 0 else _present(host, port, count, index, deadline)
    )
    if answer:
        raise Unavailable(
            f"{answer} did not come within {seconds:g} seconds; look at what it says, or set "
            f"{TIMEOUT} for slower ones"
        )


def _call(port: int, count: int, deadline: float) -> str:
    """Waits for processes 1 to count - 1; returns who is missing, "" for nobody."""
    with contextlib.ExitStack() as stack:
        try:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            listener = stack.enter_context(
                socket.create_server(("", port), family=family, dualstack_ipv6=both)
            )
        except OSError as error:
            raise Unavailable(
                f"process 0 cannot listen at port {port}: {error.strerror}; set another one in "
                f"{ADDRESS}, or where that is not set in JAX_COORDINATOR_PORT"
            ) from error
        present: dict[int, socket.socket] = {}
        while len(present) < count - 1 and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            with _until_too_late():
                peer = stack.enter_context(listener.accept()[0])
                # Who connects and says nothing is no process of the job, and must not hold up one.
                peer.settimeout(SAYS_WITHIN_SECONDS)
                said = peer.makefile("rb").readline(100).split()
                if len(said) == 2 and said[0] == b"%d" % count and said[1].isdigit():
                    present[int(said[1])] = peer
        missing = [str(i) for i in range(1, count) if i not in present]
        plural = "es" if len(missing) > 1 else ""
        answer = f"process{plural} {', '.join(missing)} of {count}" if missing else ""
        for peer in present.values():
            with contextlib.suppress(OSError):
                peer.sendall(f"{answer}\n".encode())
        return answer


def _present(host: str, port: int, count: int, index: int, deadline: float) -> str:
    """Tells process 0 that process `index` is there; returns its answer."""
    while (left := deadline - time.monotonic()) > 0:
        with _until_too_late(), socket.create_connection((host, port), timeout=left) as peer:
            peer.sendall(f"{count} {index}\n".encode())
            # Process 0 answers at its own deadline, which may be a little later.
            peer.settimeout(left + 10)
            if answer := peer.makefile("rb").readline(100_000):
                return answer.decode().strip()
        time.sleep(0.2)
    return f"process 0 of {count} at {host}:{port}"


@contextlib.contextmanager
def _until_too_late() -> Iterator[None]:
    """A process that is not there yet, or hangs up, is waited for on."""
    with contextlib.suppress(OSError):
        yield

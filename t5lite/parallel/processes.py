"""Several processes as one program: their indices, and a check that all of them have started."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.core.errors import Unavailable, UserError
from t5lite.parallel.peers import lasting_address, watch_peers

# Environment variables that set the process by hand. JAX itself reads the first.
ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT = "JAX_NUM_PROCESSES"
PROCESS_ID = "JAX_PROCESS_ID"
# How long processes wait for each other at the start.
TIMEOUT = "T5LITE_START_TIMEOUT_SECONDS"
# JAX aborts the processes of a job in which one is silent for this long. `peers` ends them before.
HEARTBEAT_SECONDS = 300
# The time in which all processes end after one has failed.
SHUTDOWN_SECONDS = 60
# The time in which a process that connects must identify itself.
IDENTIFY_SECONDS = 1.0
# Of a text that all processes see.
TEXT_BYTES = 400
# An answer may list many processes.
MAX_ANSWER_BYTES = 100_000


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
    links, hosts = roll_call(address, count, index, seconds)
    watch_peers(links, {i: f"process {i} of {count} on {host}" for i, host in hosts.items()})
    # `training.preemption` handles signals; the service would also catch SIGTERM in other commands.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        address if index == 0 else lasting_address(_host_and_port(address)),
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


def wait_for_all_processes() -> None:
    """Returns once all processes have called it."""
    everywhere(True)


def texts_of_all(text: str) -> list[str]:
    """Returns the text of each process, cut to `TEXT_BYTES`; all processes must call it."""
    if jax.process_count() == 1:
        return [text]
    own = np.zeros(TEXT_BYTES, np.uint8)
    encoded = text.encode()[:TEXT_BYTES]
    own[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = multihost_utils.process_allgather(own)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]


def from_first_process(numbers: Sequence[int]) -> list[int]:
    """Returns the numbers of the first process, under 2**31; all processes must call it."""
    if jax.process_count() == 1:
        return list(numbers)
    own = np.array(numbers, np.int32)
    length = multihost_utils.broadcast_one_to_all(np.int32(len(own)))
    own = own if jax.process_index() == 0 else np.zeros(length, np.int32)
    return [int(number) for number in multihost_utils.broadcast_one_to_all(own)]


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


def roll_call(
    address: str, count: int, index: int, seconds: float
) -> tuple[dict[int, socket.socket], dict[int, str]]:
    """Returns when all processes of a job have called it, with connections between them.

    Process 0 listens at the address that JAX uses afterwards. The other processes send their index
    and host, and process 0 answers when all have connected, or at the deadline.

    Args:
        address: HOST:PORT of process 0.
        count: number of processes.
        index: of this process.
        seconds: until the deadline.

    Returns:
        connections and names of hosts by index: of all others in process 0, of process 0 in them.

    Raises:
        Unavailable: in every process that called it, naming those that did not.
    """
    deadline = time.monotonic() + seconds
    host, port = _host_and_port(address)
    if index == 0:
        answer, links, hosts = _call(port, count, deadline)
    else:
        answer, links = _present(host, port, count, index, deadline)
        hosts = {0: host}
    if answer:
        for link in links.values():
            link.close()
        raise Unavailable(
            f"{answer} did not start within {seconds:g} seconds; read its log, or set {TIMEOUT} "
            "to wait longer"
        )
    for link in links.values():
        link.settimeout(None)
    return links, hosts


def _call(
    port: int, count: int, deadline: float
) -> tuple[str, dict[int, socket.socket], dict[int, str]]:
    """Waits for processes 1 to count - 1; returns which are missing, "" if none is."""
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise Unavailable(
            f"process 0 cannot listen at port {port}: {error.strerror}; set another port in "
            f"{ADDRESS}, or in JAX_COORDINATOR_PORT if the former is not set"
        ) from error
    links: dict[int, socket.socket] = {}
    hosts: dict[int, str] = {}
    with listener:
        while len(links) < count - 1 and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            with _ignored_errors(), contextlib.ExitStack() as stack:
                peer, _ = listener.accept()
                stack.enter_context(peer)
                # A stranger that connects and sends nothing must not delay the job.
                peer.settimeout(IDENTIFY_SECONDS)
                words = _line(peer).split()
                if len(words) == 3 and words[0] == b"%d" % count and words[1].isdigit():
                    links[int(words[1])] = peer
                    hosts[int(words[1])] = words[2].decode(errors="replace")
                    stack.pop_all()
    missing = [str(i) for i in range(1, count) if i not in links]
    plural = "es" if len(missing) > 1 else ""
    answer = f"process{plural} {', '.join(missing)} of {count}" if missing else ""
    for peer in links.values():
        with contextlib.suppress(OSError):
            peer.sendall(f"{answer}\n".encode())
    return answer, links, hosts


def _present(
    host: str, port: int, count: int, index: int, deadline: float
) -> tuple[str, dict[int, socket.socket]]:
    """Reports process `index` to process 0 and returns its answer."""
    while (left := deadline - time.monotonic()) > 0:
        with _ignored_errors(), contextlib.ExitStack() as stack:
            peer = stack.enter_context(socket.create_connection((host, port), timeout=left))
            peer.sendall(f"{count} {index} {socket.gethostname()}\n".encode())
            # Process 0 answers at its own deadline, which may be a little later.
            peer.settimeout(left + 10)
            if answer := _line(peer):
                stack.pop_all()
                return answer.decode().strip(), {0: peer}
        time.sleep(0.2)
    return f"process 0 of {count} at {host}:{port}", {}


def _line(peer: socket.socket) -> bytes:
    """Receives one line, and nothing after it; b"" if the connection closes before its end."""
    line = b""
    while not line.endswith(b"\n") and len(line) < MAX_ANSWER_BYTES:
        byte = peer.recv(1)
        if not byte:
            return b""
        line += byte
    return line


@contextlib.contextmanager
def _ignored_errors() -> Iterator[None]:
    """Ignores network errors, because a process that has not started yet may start later."""
    with contextlib.suppress(OSError):
        yield

"""How long each process of a run keeps the others waiting: stragglers and stalls of the data."""

import socket
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.parallel.processes import texts_of_all
from t5lite.training.phases import Phases

# A process is reported as slow if its own time is this many times the median ...
SLOW_RATIO = 2.0
# ... and exceeds it by this share of the time of all phases.
SLOW_SHARE = 0.1
# What one process does while the others wait for it; "wait" is the time in which it waits itself.
OWN_PHASES = ("data", "step")


class HostTimes:
    """Compares the processes of a run at each report; nothing is measured if there is only one.

    All processes finish a step together, so its duration does not distinguish them. The slowest one
    has the longest time of its own, in which it fetches batches and starts steps.

    Args:
        phases: of this process.
        log: prints a line that names a slow process and its host.
    """

    def __init__(self, phases: Phases, log: Callable[[str], None]) -> None:
        self._phases = phases
        self._log = log
        self._latest = phases.seconds()
        self._hosts: list[str] = []
        if jax.process_count() > 1:
            self._hosts = texts_of_all(socket.gethostname())

    def metrics(self) -> dict[str, float]:
        """Returns the metrics since the last call; all processes must call it together."""
        if not self._hosts:
            return {}
        now = self._phases.seconds()
        spent = {phase: now[phase] - self._latest[phase] for phase in (*OWN_PHASES, "wait")}
        self._latest = now
        data, step, wait = np.transpose(
            multihost_utils.process_allgather(np.array([*spent.values()], np.float32))
        )
        own = data + step
        slowest = int(own.argmax())
        # The lower one of two.
        median = float(np.sort(own)[(len(own) - 1) // 2])
        excess = float(own[slowest]) - median
        if own[slowest] > SLOW_RATIO * median and excess > SLOW_SHARE * float((own + wait).max()):
            self._log(
                f"process {slowest} on {self._hosts[slowest]} is slow: it spent "
                f"{own[slowest]:.3g} seconds on its own part since the last report, of which it "
                f"waited {data[slowest]:.3g} for data; the median is {median:.3g}"
            )
        return {
            "slowest_process": float(slowest),
            "slowest_host_seconds": float(own[slowest]),
            "median_host_seconds": median,
            "longest_data_wait_seconds": float(data.max()),
        }

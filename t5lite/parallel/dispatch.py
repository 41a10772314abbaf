"""How far the host may run ahead of the devices."""

from collections.abc import Sequence
from typing import Any

import jax

from t5lite.parallel.mesh import DeviceMesh

# Programs in flight: enough that devices never wait for the host, and few enough that the batches
# of a long evaluation are not all in memory.
DEPTH = 3


def settle(results: Sequence[Any], mesh: DeviceMesh) -> None:
    """Waits until fewer than `DEPTH` of the programs that return `results` are in flight.

    NOTE: on several simulated CPU devices it waits for all. Their programs share a pool of threads,
    and two at once can deadlock: each holds threads that the other's collectives need.
    """
    simulated = mesh.size > 1 and mesh.platform == "cpu"
    depth = 1 if simulated else DEPTH
    if len(results) >= depth:
        jax.block_until_ready(results[-depth])

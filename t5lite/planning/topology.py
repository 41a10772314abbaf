"""Devices to compile for without having them: those of a TPU slice by name, or simulated ones."""

import importlib.util
import math
import os
from typing import Any

import jax

from t5lite.core.errors import UserError

# The dimensions of a slice and its maximum number of chips.
TPU_KINDS = {
    "v4": (3, 4096),
    "v5e": (2, 256),
    "v5p": (3, 8960),
    "v6e": (2, 256),
    "tpu7x": (3, 9216),
}
TOPOLOGY_EXAMPLES = "v5e:16x16, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4 or cpu:8"


def devices_of(topology: str, num_slices: int = 1) -> list[Any]:
    """Returns the devices of a topology. Programs can be compiled for them but not run.

    Call it before JAX initializes its devices.

    Args:
        topology: a kind of TPU and the shape of a slice in chips, such as "v5e:16x16", or "cpu:8".
        num_slices: number of slices of that shape, connected by the data-centre network.

    Raises:
        UserError: for an unknown kind or shape, or if libtpu is not installed.
    """
    kind, _, shape = topology.partition(":")
    # On a TPU host another process may be using the TPUs.
    jax.config.update("jax_platforms", "cpu")
    if kind == "cpu":
        if not shape.isdigit() or int(shape) < 1:
            raise UserError(f"--topology cpu:N needs a number of devices, got {topology!r}")
        jax.config.update("jax_num_cpu_devices", int(shape) * num_slices)
        return list(jax.devices())
    if kind not in TPU_KINDS or not shape:
        raise UserError(
            f"--topology must be one of {', '.join(TPU_KINDS)} with a shape, or cpu:N, such as "
            f"{TOPOLOGY_EXAMPLES}, got {topology!r}"
        )
    dimensions, most = TPU_KINDS[kind]
    sizes = [int(size) if size.isdigit() else 0 for size in shape.split("x")]
    if len(sizes) != dimensions or min(sizes) < 1 or math.prod(sizes) > most:
        raise UserError(
            f"--topology {kind} needs {dimensions} sizes with x between them, {most:,} chips at "
            f"most, got {topology!r}; try {TOPOLOGY_EXAMPLES}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology {topology} needs the TPU compiler; install it with pip install libtpu "
            "(no TPU is needed), or plan for simulated devices with --topology=cpu:8"
        )
    # Without these libtpu queries Google's metadata server, and locks out other processes.
    for name, value in {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if kind == "v4":
        # JAX uses both cores of a chip as one device.
        options["chip_config_name"] = "megacore"
    try:
        return list(topologies.get_topology_desc(topology, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        raise UserError(
            f"--topology {topology} does not exist: {reason}; try {TOPOLOGY_EXAMPLES}"
        ) from error

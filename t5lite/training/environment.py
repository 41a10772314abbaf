"""What a run ran on: versions, devices, host and command."""

import importlib.metadata
import platform
import socket
from collections.abc import Sequence
from typing import Any

import jax

# Packages whose version can change numbers.
PACKAGES = ("t5lite", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")


def environment_of(command: Sequence[str]) -> dict[str, Any]:
    """Returns versions, devices, host and command as plain data for JSON."""
    devices = jax.devices()
    return {
        "command": list(command),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **_versions()},
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # Such as t5lite itself, if it runs from a checkout that is not installed.
            continue
    return found

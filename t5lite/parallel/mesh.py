"""The mesh of devices: the meaning of its axes, and the order of devices along them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from t5lite.core.errors import UserError
from t5lite.core.fields import field_error
from t5lite.parallel.rules import MESH_AXES, Rules, with_rules

# The outermost axis if `Mesh.population` is over 1; otherwise the mesh has no such axis.
POPULATION = "population"


@dataclasses.dataclass(frozen=True)
class DeviceMesh:
    """Devices along named axes, and the rules that split arrays among them."""

    devices: jax.sharding.Mesh
    rules: Rules

    @property
    def shape(self) -> dict[str, int]:
        """The number of devices along each axis."""
        return dict(self.devices.shape)

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.devices.size

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu"."""
        return str(self.devices.devices.flat[0].platform)

    def without(self, axis: str) -> "DeviceMesh":
        """Returns the same devices with rules that do not split a logical axis."""
        return DeviceMesh(self.devices, {**self.rules, axis: ()})

    def shares(self, axis: str) -> int:
        """Returns how many parts a logical axis is split into."""
        return math.prod(self.shape[name] for name in self.rules[axis])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Sizes of the mesh axes, in devices; one may be -1 and takes all remaining devices.

    Args:
        dcn: copies of the parameters, one in each slice, with a slow network between slices that
            only gradients cross; None for the number of TPU slices, and 1 for all other devices.
        data: copies of the parameters in a slice, each working on its share of the batch.
        fsdp: shares of the batch; parameters and optimizer state are split among them too.
        expert: shares of the batch; the experts of a mixture are split among them.
        sequence: shares of the tokens of a row.
        tensor: shares of heads, feed-forward width and vocabulary.
        population: groups of devices that share the trials of a vectorized sweep; each group has a
            mesh of all other axes. A single run does the same in every group.
        rules: changes to `parallel.rules.RULES`, pairs of a logical axis and the mesh axes that
            split it, as in [('embed', ['fsdp', 'data']), ('vocab', None)].

    Raises:
        UserError: for a size under 1, -1 for `dcn` or more than once, or conflicting rules.
    """

    dcn: int | None = None
    data: int = -1
    fsdp: int = 1
    expert: int = 1
    sequence: int = 1
    tensor: int = 1
    population: int = 1
    rules: Sequence[Any] = ()

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in MESH_AXES}
        given = [size for size in sizes.values() if size is not None]
        if any(size < 1 and size != -1 for size in given) or given.count(-1) > 1 or self.dcn == -1:
            raise UserError(
                "Mesh axes must be whole numbers > 0, at most one of them -1 for the rest and not "
                f"dcn, got {sizes}"
            )
        if self.population < 1:
            raise field_error(self, "population", "a number > 0")
        with_rules(self.rules)

    def make(self, devices: Sequence[Any] | None = None) -> DeviceMesh:
        """Returns the mesh over `devices`, by default all devices.

        Raises:
            UserError: if the sizes do not multiply to the number of devices, or `dcn` is not the
                number of slices.
        """
        devices = jax.devices() if devices is None else list(devices)
        if self.population > 1:
            return self._groups(devices)
        slices = _slices(devices, self.dcn)
        sizes = {name: getattr(self, name) for name in MESH_AXES} | {"dcn": len(slices)}
        count = len(devices)
        given = math.prod(size for size in sizes.values() if size != -1)
        if count % given or (-1 not in sizes.values() and given != count):
            raise UserError(
                f"Mesh must use all {count} devices, got {sizes}; "
                "set one axis to -1 to let it take the rest"
            )
        shape = [count // given if size == -1 else size for size in sizes.values()]
        # Neighbours on the network are neighbours along the last axes, which communicate most.
        arranged = [
            mesh_utils.create_device_mesh(shape[1:], part, allow_split_physical_axes=True)
            for part in slices
        ]
        auto = (AxisType.Auto,) * len(shape)
        mesh = jax.sharding.Mesh(np.stack(arranged), MESH_AXES, axis_types=auto)
        return DeviceMesh(mesh, with_rules(self.rules))

    def _groups(self, devices: Sequence[Any]) -> DeviceMesh:
        """Returns the same mesh over each of several equal groups of devices."""
        if len(devices) % self.population:
            raise field_error(self, "population", f"a divisor of the {len(devices)} devices")
        size = len(devices) // self.population
        one = dataclasses.replace(self, population=1)
        parts = [one.make(devices[start : start + size]) for start in range(0, len(devices), size)]
        grid = np.stack([part.devices.devices for part in parts])
        names = (POPULATION, *MESH_AXES)
        mesh = jax.sharding.Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))
        return DeviceMesh(mesh, parts[0].rules)


def _slices(devices: Sequence[Any], wanted: int | None) -> list[list[Any]]:
    """Returns devices by slice; if slices are unknown, equal groups in order."""
    by_slice: dict[Any, list[Any]] = {}
    for device in devices:
        # GPUs have this attribute too, but parameters may be split across their nodes.
        index = getattr(device, "slice_index", None) if device.platform == "tpu" else None
        by_slice.setdefault(index, []).append(device)
    if len(by_slice) > 1 and wanted != 1:
        if wanted not in (None, len(by_slice)):
            raise UserError(
                f"Mesh.dcn must be the number of slices ({len(by_slice)}), or 1 to split over all "
                f"of them alike, got {wanted}; leave it unbound"
            )
        return list(by_slice.values())
    count = wanted or 1
    if len(devices) % count:
        raise UserError(f"Mesh.dcn must divide the {len(devices)} devices, got {count}")
    size = len(devices) // count
    return [list(devices[start : start + size]) for start in range(0, len(devices), size)]

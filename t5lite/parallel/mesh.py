"""The mesh of devices: what its axes are for, and how devices are arranged along them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from t5lite.core.errors import UserError
from t5lite.parallel.rules import MESH_AXES, Rules, with_rules

# The outermost axis where `Mesh.population` is over 1; else there is none of that name.
POPULATION = "population"


@dataclasses.dataclass(frozen=True)
class DeviceMesh:
    """Devices along named axes, and the rules by which arrays are split among them."""

    devices: jax.sharding.Mesh
    rules: Rules

    @property
    def shape(self) -> dict[str, int]:
        """Devices along each axis."""
        return dict(self.devices.shape)

    @property
    def size(self) -> int:
        """All devices."""
        return self.devices.size

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu"."""
        return str(self.devices.devices.flat[0].platform)

    def without(self, axis: str) -> "DeviceMesh":
        """Returns the same devices with a logical axis that nothing splits."""
        return DeviceMesh(self.devices, {**self.rules, axis: ()})

    def shares(self, axis: str) -> int:
        """Returns how many parts a logical axis is split into."""
        return math.prod(self.shape[name] for name in self.rules[axis])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Sizes of the mesh axes, in devices; one may be -1 and takes all that the others leave.

    Args:
        dcn: copies of the parameters, one in each slice, with a slow network between them that only
            gradients cross; None for as many as TPUs have slices, and 1 for all other devices.
        data: copies of the parameters in a slice, each working on its share of the batch.
        fsdp: shares of the batch among which parameters and optimizer state are split too.
        expert: shares of the batch among which the experts of a mixture are split.
        sequence: shares of the tokens of a row.
        tensor: shares of heads, feed-forward width and vocabulary.
        population: groups of devices among which the runs of a vectorized sweep are split; each
            group has a mesh of all the others. What trains alone does the same in each.
        rules: changes to `parallel.rules.RULES`, pairs of a logical axis and the mesh axes that
            split it, as in [('embed', ['fsdp', 'data']), ('vocab', None)].

    Raises:
        UserError: for a size under 1, -1 for `dcn` or more than once, or rules that collide.
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
            raise UserError(f"Mesh.population must be a number > 0, got {self.population}")
        with_rules(self.rules)

    def make(self, devices: Sequence[Any] | None = None) -> DeviceMesh:
        """Returns the mesh over `devices`, by default all that there are.

        Raises:
            UserError: where the sizes do not make up the number of devices, or `dcn` is not the
                number of slices.
        """
        devices = jax.devices() if devices is None else list(devices)
        if self.population > 1:
            return self._groups(devices)
        slices = _slices(devices, self.dcn)
        sizes = {name: getattr(self, name) for name in MESH_AXES} | {"dcn": len(slices)}
        count, given = len(devices), math.prod(size for size in sizes.values() if size != -1)
        if count % given or (-1 not in sizes.values() and given != count):
            raise UserError(
                f"Mesh must use all {count} devices, got {sizes}; "
                "set one axis to -1 to let it take the rest"
            )
        shape = [count // given if size == -1 else size for size in sizes.values()]
        # Neighbours on the network are neighbours on the last axes, which talk most.
        arranged = [
            mesh_utils.create_device_mesh(shape[1:], part, allow_split_physical_axes=True)
            for part in slices
        ]
        auto = (AxisType.Auto,) * len(shape)
        mesh = jax.sharding.Mesh(np.stack(arranged), MESH_AXES, axis_types=auto)
        return DeviceMesh(mesh, with_rules(self.rules))

    def _groups(self, devices: Sequence[Any]) -> DeviceMesh:
        """The same mesh over each of some equal parts of the devices."""
        if len(devices) % self.population:
            raise UserError(
                f"Mesh.population must divide the {len(devices)} devices, got {self.population}"
            )
        size, one = len(devices) // self.population, dataclasses.replace(self, population=1)
        parts = [one.make(devices[start : start + size]) for start in range(0, len(devices), size)]
        grid = np.stack([part.devices.devices for part in parts])
        names = (POPULATION, *MESH_AXES)
        mesh = jax.sharding.Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))
        return DeviceMesh(mesh, parts[0].rules)


def _slices(devices: Sequence[Any], wanted: int | None) -> list[list[Any]]:
    """Devices with a fast network between them; where none is told, equal parts in their order."""
    by_slice: dict[Any, list[Any]] = {}
    for device in devices:
        # GPUs have one too, but a node of them is no place that parameters must stay in.
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

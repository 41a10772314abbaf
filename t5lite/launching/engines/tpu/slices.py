"""TPU slices by the names that users know, and what engines call them."""

import dataclasses
import itertools
import math

from t5lite.core.errors import UserError, check_choice

CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One generation.

    Args:
        prefix: of the accelerator type.
        cores: by which its name counts, in a chip.
        runtime: what its machines boot with (cloud.google.com/tpu/docs/runtimes); None where they
            are to be had on GKE only.
        label: of GKE's nodes.
        most: chips of a slice.
    """

    prefix: str
    cores: int
    runtime: str | None
    label: str
    most: int


KINDS = {
    "v4": _Kind("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", 4096),
    "v5e": _Kind("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 256),
    "v5p": _Kind("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", 8960),
    "v6e": _Kind("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", 256),
    "tpu7x": _Kind("tpu7x", 2, None, "tpu7x", 9216),
}
# Slices of two dimensions, by their chips.
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
# Those of three that are less than a cube of 4 x 4 x 4.
SMALL = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4"}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice.

    Args:
        accelerator: its type for queued resources, such as "v5litepod-16".
        runtime: what its machines boot with; None where it is to be had on GKE only.
        label: of GKE's nodes, such as "tpu-v5-lite-podslice".
        topology: chips along each dimension, such as "4x4".
    """

    accelerator: str
    runtime: str | None
    label: str
    topology: str

    @property
    def chips(self) -> int:
        """Of all its machines."""
        return math.prod(int(size) for size in self.topology.split("x"))

    @property
    def hosts(self) -> int:
        """Machines with chips."""
        return max(self.chips // CHIPS_PER_HOST, 1)


def slice_of(name: str) -> Slice:
    """Returns the slice of a name: v4, v5p and tpu7x count cores, two a chip, v5e and v6e chips.

    >>> slice_of("v5e-16").accelerator, slice_of("v4-32").topology, slice_of("tpu7x-64").hosts
    ('v5litepod-16', '2x2x4', 8)

    Raises:
        UserError: where there is no such slice.
    """
    kind, _, number = name.partition("-")
    check_choice("the kind of TPU", kind, KINDS)
    about = KINDS[kind]
    chips = int(number) / about.cores if number.isdigit() else 0
    if about.cores == 1:
        topology = FLAT.get(int(chips))
    else:
        topology = SMALL.get(int(chips)) or _cube(int(chips)) if chips == int(chips) else None
    if topology is None or chips > about.most:
        example = "v5e-16" if about.cores == 1 else f"{kind}-32"
        raise UserError(
            f"a slice of {kind} is {kind}-N with the number of its "
            f"{'chips' if about.cores == 1 else 'cores'}, such as {example}, got {name!r}"
        )
    return Slice(f"{about.prefix}-{number}", about.runtime, about.label, topology)


def _cube(chips: int) -> str | None:
    """The most even box of cubes of 4 x 4 x 4.

    >>> _cube(512), _cube(768), _cube(100)
    ('8x8x8', '8x8x12', None)
    """
    if chips < 1 or chips % 64:
        return None
    cubes = chips // 64
    sizes = [n for n in range(1, cubes + 1) if cubes % n == 0]
    boxes = [
        (a, b, cubes // (a * b))
        for a, b in itertools.combinations_with_replacement(sizes, 2)
        if cubes % (a * b) == 0 and b <= cubes // (a * b)
    ]
    return "x".join(str(4 * size) for size in min(boxes, key=sum))

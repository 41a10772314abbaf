"""TPU slices by the names that users know, and what engines call them."""

import dataclasses
import itertools
import math

from t5lite.core.errors import UserError, check_choice

CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Generation:
    """One generation of TPUs.

    Args:
        prefix: prefix of the accelerator type.
        cores: the units in which names count a chip: 2 if they count cores, else 1.
        runtime: software of its machines (cloud.google.com/tpu/docs/runtimes); None if the
            generation is offered on GKE only.
        label: label of GKE's nodes.
        max_chips: chips of the largest slice.
    """

    prefix: str
    cores: int
    runtime: str | None
    label: str
    max_chips: int


GENERATIONS = {
    "v4": _Generation(
        prefix="v4",
        cores=2,
        runtime="tpu-ubuntu2204-base",
        label="tpu-v4-podslice",
        max_chips=4096,
    ),
    "v5e": _Generation(
        prefix="v5litepod",
        cores=1,
        runtime="v2-alpha-tpuv5-lite",
        label="tpu-v5-lite-podslice",
        max_chips=256,
    ),
    "v5p": _Generation(
        prefix="v5p", cores=2, runtime="v2-alpha-tpuv5", label="tpu-v5p-slice", max_chips=8960
    ),
    "v6e": _Generation(
        prefix="v6e", cores=1, runtime="v2-alpha-tpuv6e", label="tpu-v6e-slice", max_chips=256
    ),
    "tpu7x": _Generation(prefix="tpu7x", cores=2, runtime=None, label="tpu7x", max_chips=9216),
}
# Topologies of two dimensions, by their chips.
FLAT_TOPOLOGIES = {
    1: "1x1",
    4: "2x2",
    8: "2x4",
    16: "4x4",
    32: "4x8",
    64: "8x8",
    128: "8x16",
    256: "16x16",
}
# Topologies of three dimensions below a cube of 4 x 4 x 4.
SMALL_TOPOLOGIES = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4"}


@dataclasses.dataclass(frozen=True)
class TpuSlice:
    """A slice.

    Args:
        accelerator: its type for queued resources, such as "v5litepod-16".
        runtime: software that its machines boot; None if it is offered on GKE only.
        label: label of GKE's nodes, such as "tpu-v5-lite-podslice".
        topology: chips along each dimension, such as "4x4".
    """

    accelerator: str
    runtime: str | None
    label: str
    topology: str

    @property
    def chips(self) -> int:
        """Number of chips of all machines."""
        return math.prod(int(size) for size in self.topology.split("x"))

    @property
    def hosts(self) -> int:
        """Number of machines with chips."""
        return max(self.chips // CHIPS_PER_HOST, 1)


def slice_of(name: str) -> TpuSlice:
    """Returns the slice of a name: v4, v5p and tpu7x count cores, two a chip, v5e and v6e chips.

    >>> slice_of("v5e-16").accelerator, slice_of("v4-32").topology, slice_of("tpu7x-64").hosts
    ('v5litepod-16', '2x2x4', 8)

    Raises:
        UserError: if there is no such slice.
    """
    kind, _, number = name.partition("-")
    check_choice("the kind of TPU", kind, GENERATIONS)
    generation = GENERATIONS[kind]
    is_number = number.isascii() and number.isdigit() and len(number) < 7
    chips = int(number) / generation.cores if is_number else 0
    if generation.cores == 1:
        topology = FLAT_TOPOLOGIES.get(int(chips))
    elif chips == int(chips):
        topology = SMALL_TOPOLOGIES.get(int(chips)) or _cube(int(chips))
    else:
        topology = None
    if topology is None or chips > generation.max_chips:
        example = "v5e-16" if generation.cores == 1 else f"{kind}-32"
        unit = "chips" if generation.cores == 1 else "cores"
        raise UserError(
            f"a slice of {kind} must be {kind}-N with the number of its {unit}, such as {example}, "
            f"got {name!r}"
        )
    return TpuSlice(f"{generation.prefix}-{number}", generation.runtime, generation.label, topology)


def _cube(chips: int) -> str | None:
    """Returns the most even box of cubes of 4 x 4 x 4.

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

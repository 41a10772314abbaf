"""Memory, FLOPs, network and the least time of a step, from its program and its devices."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from t5lite.core.errors import UserError
from t5lite.parallel.hardware import Device
from t5lite.planning.program_text import Collective, Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device while the step runs.

    Args:
        params, optimizer: what is kept between steps.
        host_optimizer: of the optimizer what is in the host's memory, for each device.
        inputs: the batch and the run's numbers, and what padding to tiles adds to all arguments.
        temporary: gradients, activations and all else that lives within a step.
        code: the program itself.
        missing: what the device has too little; then `temporary` is all that the compiler says is
            needed besides parameters and optimizer.
    """

    params: int
    optimizer: int
    host_optimizer: int
    inputs: int
    temporary: int
    code: int
    missing: int = 0

    @property
    def total(self) -> int:
        """All that is on the device."""
        return self.params + self.optimizer + self.inputs + self.temporary + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What one step costs each device.

    Args:
        model_flops: by the formula, nothing that is computed again counted.
        program_flops: of all matrix products in the program; None where it does not fit.
        program: None where it does not fit.
    """

    memory: Memory
    model_flops: float
    program_flops: float | None
    collectives: tuple[Collective, ...]
    program: Program | None

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.memory.missing == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """The least seconds that a step can take, were all else hidden behind the slowest part.

    Traffic between a device and its own memory is not part of it, nor is the way that messages take
    through the network: a real step takes longer.
    """

    compute_seconds: float
    ici_seconds: float
    dcn_seconds: float
    mfu_fraction: float

    @property
    def seconds(self) -> float:
        """Of the slowest part."""
        return max(self.compute_seconds, self.ici_seconds, self.dcn_seconds)

    @property
    def slowest(self) -> str:
        """The name of the slowest part."""
        parts = {
            "compute": self.compute_seconds,
            "network in a slice": self.ici_seconds,
            "network between slices": self.dcn_seconds,
        }
        return max(parts, key=lambda name: parts[name])


def costs_of(
    lowered: jax.stages.Lowered,
    params: Any,
    opt_state: Any,
    mesh: Mapping[str, int],
    *,
    model_flops: float,
    device: Device | None,
) -> Costs:
    """Compiles a step and returns what it costs.

    Args:
        params, opt_state: shapes and shardings.
        mesh: sizes of the mesh axes, in the order of the devices.
        model_flops: of one step on one device, by the formula.
        device: what one can do; None where that is not known.

    Raises:
        UserError: where the compiler fails for another reason than memory.
    """
    kept = {"params": held(params)[0]}
    kept["optimizer"], kept["host_optimizer"] = held(opt_state)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = _out_of_memory(error)
        rest = max(needed - kept["params"] - kept["optimizer"], 0)
        missing = max(needed - available, 1)
        memory = Memory(**kept, inputs=0, temporary=rest, code=0, missing=missing)
        return Costs(
            memory=memory, model_flops=model_flops, program_flops=None, collectives=(), program=None
        )
    sizes: Any = compiled.memory_analysis()
    # Simulated devices have no memory but the host's.
    on_host = 0 if sizes.host_argument_size_in_bytes else kept["host_optimizer"]
    known = kept["params"] + kept["optimizer"] + on_host
    memory = Memory(
        **kept,
        inputs=max(sizes.argument_size_in_bytes - known, 0),
        temporary=sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
    )
    limit = math.inf if device is None else device.hbm_bytes or math.inf
    if memory.total > limit:
        memory = dataclasses.replace(memory, missing=math.ceil(memory.total - limit))
    program = Program(compiled.as_text() or "")
    return Costs(
        memory=memory,
        model_flops=model_flops,
        program_flops=program.flops(),
        collectives=tuple(program.collectives(mesh)),
        program=program,
    )


def held(tree: Any) -> tuple[int, int]:
    """Returns the bytes of a tree of shapes on each device, and on the host for each device."""
    sizes = {True: 0, False: 0}
    for leaf in jax.tree.leaves(tree):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        sizes[leaf.sharding.memory_kind == "pinned_host"] += size
    return sizes[False], sizes[True]


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_TOO_LARGE = (
    re.compile(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)


def _out_of_memory(error: Exception) -> tuple[int, int]:
    """Returns the bytes that the compiler says are needed, and those that there are."""
    for pattern in _TOO_LARGE:
        if found := pattern.search(str(error)):
            numbers = found.groups()
            needed, available = (
                int(float(number) * _UNITS[unit])
                for number, unit in zip(numbers[::2], numbers[1::2], strict=True)
            )
            return needed, available
    reason = str(error).splitlines()[0][:300]
    raise UserError(f"the compiler cannot compile the step: {reason}") from error


def bound_of(costs: Costs, device: Device, mesh: Mapping[str, int]) -> Bound:
    """Returns the least time of a step that compiled, on devices of this kind."""
    assert costs.program_flops is not None
    parts = [_networks(made, mesh) for made in costs.collectives]
    within, between = (sum(part[place] for part in parts) for place in (0, 1))
    compute = costs.program_flops / device.flops
    ici = within / device.ici_bytes_per_second if device.ici_bytes_per_second else 0.0
    dcn = between / device.dcn_bytes_per_second if device.dcn_bytes_per_second else 0.0
    slowest = max(compute, ici, dcn)
    return Bound(
        compute_seconds=compute,
        ici_seconds=ici,
        dcn_seconds=dcn,
        mfu_fraction=costs.model_flops / (slowest * device.flops),
    )


def _networks(made: Collective, mesh: Mapping[str, int]) -> tuple[float, float]:
    """Returns the least bytes that each device sends in its slice, and to other slices.

    Among several slices the devices of each first share out the work, so that every device sends
    only its part of what leaves the slice.
    """
    if "dcn" not in made.axes:
        return made.sent_bytes, 0.0
    if made.kind == "collective-permute":
        return 0.0, made.sent_bytes
    slices, rounds = mesh["dcn"], 2 if made.kind == "all-reduce" else 1
    local = math.prod(mesh[axis] for axis in made.axes if axis != "dcn")
    moved = rounds * made.payload_bytes * made.times
    if made.kind == "all-to-all":
        return moved * (local - 1) / local / slices, moved * (slices - 1) / slices
    return moved * (local - 1) / local, moved * (slices - 1) / slices / local


def by_kind_and_axis(collectives: tuple[Collective, ...]) -> list[dict[str, Any]]:
    """Returns the bytes that each device sends in a step, by kind and mesh axes, most first."""
    rows: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for made in collectives:
        row = rows.setdefault(
            (made.kind, made.axes),
            {"kind": made.kind, "axes": list(made.axes), "times": 0, "sent_bytes": 0.0},
        )
        row["times"] += made.times
        row["sent_bytes"] += made.sent_bytes
    return sorted(rows.values(), key=lambda row: -row["sent_bytes"])

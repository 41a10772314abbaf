"""Memory, FLOPs, network traffic and the minimum time of a step, from its program and devices."""

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
        params, optimizer: parameters and optimizer state.
        frozen: parameters of models that do not train.
        host_optimizer: optimizer state in the host's memory, for each device.
        inputs: the batch, the run's numbers, and padding of all arguments to tiles.
        temporary: gradients, activations and everything else that lives within a step.
        code: the program itself.
        missing: bytes by which the memory is too small; if over 0, `temporary` is all that the
            compiler needs besides parameters and optimizer state.
    """

    params: int
    optimizer: int
    host_optimizer: int
    inputs: int
    temporary: int
    code: int
    frozen: int = 0
    missing: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        kept = self.params + self.optimizer + self.frozen
        return kept + self.inputs + self.temporary + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of one step on each device.

    Args:
        model_flops: by the formula, without rematerialization.
        program_flops: of all matrix products in the program; None if it does not fit.
        program: None if it does not fit.
    """

    memory: Memory
    model_flops: float
    program_flops: float | None
    collectives: tuple[Collective, ...]
    program: Program | None

    @property
    def fits(self) -> bool:
        """Whether the step fits into memory."""
        return self.memory.missing == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """The minimum seconds of a step, if everything overlaps with the slowest part.

    It ignores traffic between a device and its own memory and the routes of messages through the
    network: a real step takes longer.
    """

    compute_seconds: float
    ici_seconds: float
    dcn_seconds: float
    mfu_fraction: float

    @property
    def seconds(self) -> float:
        """Seconds of the slowest part."""
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
    frozen: Any = None,
) -> Costs:
    """Compiles a step and returns its costs.

    Args:
        params, opt_state: shapes and shardings; with the optimizer's state, what else is kept of
            the parameters that train.
        mesh: sizes of the mesh axes, in the order of the devices.
        model_flops: of one step on one device, by the formula.
        device: rates and memory of each device; None if they are unknown.
        frozen: shapes and shardings of the parameters of models that do not train.

    Raises:
        UserError: if the compiler fails for another reason than memory.
    """
    kept = {"params": bytes_per_device(params)[0]}
    kept["optimizer"], kept["host_optimizer"] = bytes_per_device(opt_state)
    kept["frozen"] = bytes_per_device(frozen)[0]
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = _out_of_memory(error)
        rest = max(needed - kept["params"] - kept["optimizer"] - kept["frozen"], 0)
        missing = max(needed - available, 1)
        memory = Memory(**kept, inputs=0, temporary=rest, code=0, missing=missing)
        return Costs(
            memory=memory, model_flops=model_flops, program_flops=None, collectives=(), program=None
        )
    sizes: Any = compiled.memory_analysis()
    # Simulated devices have no memory other than the host's.
    on_host = 0 if sizes.host_argument_size_in_bytes else kept["host_optimizer"]
    known = kept["params"] + kept["optimizer"] + kept["frozen"] + on_host
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
        program_flops=float(program.flops()),
        collectives=tuple(program.collectives(mesh)),
        program=program,
    )


def bytes_per_device(tree: Any) -> tuple[int, int]:
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
    """Returns the bytes that the compiler needs, and those available, from its error."""
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
    """Returns the minimum time of a compiled step on devices of this kind."""
    assert costs.program_flops is not None
    sent = [_sent_bytes(collective, mesh) for collective in costs.collectives]
    within = sum(to_slice for to_slice, _ in sent)
    between = sum(to_others for _, to_others in sent)
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


def _sent_bytes(collective: Collective, mesh: Mapping[str, int]) -> tuple[float, float]:
    """Returns the minimum bytes that each device sends within its slice, and to other slices.

    Between slices every device sends only its share of the data that leaves its slice.
    """
    if "dcn" not in collective.axes:
        return collective.sent_bytes, 0.0
    if collective.kind == "collective-permute":
        return 0.0, collective.sent_bytes
    slices = mesh["dcn"]
    rounds = 2 if collective.kind == "all-reduce" else 1
    local = math.prod(mesh[axis] for axis in collective.axes if axis != "dcn")
    moved = rounds * collective.payload_bytes * collective.times
    if collective.kind == "all-to-all":
        return moved * (local - 1) / local / slices, moved * (slices - 1) / slices
    return moved * (local - 1) / local, moved * (slices - 1) / slices / local


def by_kind_and_axis(collectives: tuple[Collective, ...]) -> list[dict[str, Any]]:
    """Returns the bytes that each device sends in a step, by kind and mesh axes, most first."""
    rows: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for collective in collectives:
        row = rows.setdefault(
            (collective.kind, collective.axes),
            {"kind": collective.kind, "axes": list(collective.axes), "times": 0, "sent_bytes": 0.0},
        )
        row["times"] += collective.times
        row["sent_bytes"] += collective.sent_bytes
    return sorted(rows.values(), key=lambda row: -row["sent_bytes"])

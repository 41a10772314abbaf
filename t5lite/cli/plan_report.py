"""A plan, its JSON document and its tables."""

import dataclasses
from typing import Any

import rich.console
import rich.table

from t5lite.core.counts import counted
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.parallel.hardware import Device
from t5lite.planning.costs import Bound, Costs, bound_of, by_kind_and_axis
from t5lite.planning.remedies import remedies
from t5lite.training.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The costs of a run's step on devices, which may be simulated.

    Args:
        batch_shares: number of parts into which the batch is split.
        whole: arrays that every device holds whole although the mesh splits them.
    """

    run: Run
    topology: str
    num_devices: int
    kind: str
    device: Device | None
    mesh: dict[str, int]
    batch_shares: int
    costs: Costs
    whole: tuple[str, ...]

    @property
    def bound(self) -> Bound | None:
        """The minimum time of a step; None if it does not fit or device rates are unknown."""
        if self.device is None or self.costs.program is None:
            return None
        return bound_of(self.costs, self.device, self.mesh)


def plan_as_json(made: Plan) -> dict[str, Any]:
    """Returns the plan as plain data for JSON; bytes and FLOPs are of each device."""
    costs = made.costs
    bound = made.bound
    return {
        "topology": made.topology,
        "devices": made.num_devices,
        "device_kind": made.kind,
        "mesh": made.mesh,
        "batch_size": made.run.batch_size,
        "fits": None if made.device is None else costs.fits,
        "hbm_bytes": None if made.device is None else made.device.hbm_bytes,
        "memory_bytes": {**dataclasses.asdict(costs.memory), "total": costs.memory.total},
        "model_flops": costs.model_flops,
        "program_flops": costs.program_flops,
        "collectives": by_kind_and_axis(costs.collectives),
        "held_whole": list(made.whole),
        "loops_not_read": len(costs.program.unread_loops) if costs.program is not None else 0,
        "bound": None
        if bound is None
        else {**dataclasses.asdict(bound), "seconds": bound.seconds, "slowest": bound.slowest},
        "remedies": [] if costs.fits else _remedies(made),
    }


def _remedies(made: Plan) -> list[str]:
    run = made.run
    loss = run.evaluation_loss
    return remedies(
        made.costs,
        run.model,
        made.mesh,
        rows=run.batch_size // made.batch_shares,
        microbatches=run.microbatches,
        loss_chunks=loss.chunks if isinstance(loss, CrossEntropy) else None,
        param_dtype=run.param_dtype,
    )


def print_plan(console: rich.console.Console, made: Plan) -> None:
    """Prints a plan."""
    costs = made.costs
    memory = costs.memory
    split = ", ".join(f"{axis} {size}" for axis, size in made.mesh.items() if size > 1)
    console.print(
        f"{made.topology}: {counted(made.num_devices, 'device')} of {made.kind}; mesh: "
        f"{split or 'none'}; {counted(made.run.batch_size, 'row')} a step\n"
    )
    table = _table("memory on each device", "MB")
    names = {
        "parameters": memory.params,
        "optimizer state": memory.optimizer,
        **({"parameters of the teacher": memory.frozen} if memory.frozen else {}),
        "batch and padding of arguments": memory.inputs,
        "gradients, activations, temporary": memory.temporary,
        "program": memory.code,
        "total": memory.total,
    }
    for name, size in names.items():
        table.add_row(name, f"{size / 1e6:,.1f}")
    if memory.host_optimizer:
        table.add_row("optimizer state, on the host", f"{memory.host_optimizer / 1e6:,.1f}")
    console.print(table)
    if made.device is not None and made.device.hbm_bytes is not None:
        has = made.device.hbm_bytes / 1e9
        short = f"does NOT fit: {memory.missing / 1e9:.1f} GB missing of {has:.1f} GB"
        console.print(f"fits in {has:.1f} GB\n" if costs.fits else f"{short}\n")
    if not costs.fits:
        console.print("flags to try:")
        for line in _remedies(made):
            console.print(f"  {line}", markup=False)
    if costs.program_flops is None:
        return
    extra = costs.program_flops / costs.model_flops - 1
    console.print(
        f"{costs.program_flops / 1e12:.4g} TFLOP a step on each device; by the formula "
        f"{costs.model_flops / 1e12:.4g} ({extra:+.1%}: rematerialization and routing)\n"
    )
    if costs.program is not None and costs.program.unread_loops:
        console.print(
            f"{len(costs.program.unread_loops)} loops have an unknown number of iterations and "
            "count as one, so FLOPs and traffic are higher than printed here\n"
        )
    table = _table("each device sends in a step", "along", "times", "MB")
    for row in by_kind_and_axis(costs.collectives):
        along = ", ".join(row["axes"])
        table.add_row(row["kind"], along, f"{row['times']:,}", f"{row['sent_bytes'] / 1e6:,.1f}")
    console.print(table if table.rows else "each device sends nothing in a step")
    for name in made.whole:
        console.print(f"every device holds {name} whole, although the mesh splits it", markup=False)
    if (bound := made.bound) is not None:
        console.print(
            f"\na step takes at least {bound.seconds:.4g} s ({bound.slowest}); compute "
            f"{bound.compute_seconds:.4g} s, network in a slice {bound.ici_seconds:.4g} s, between "
            f"slices {bound.dcn_seconds:.4g} s; MFU at most {bound.mfu_fraction:.1%}"
        )


def _table(first: str, *others: str) -> rich.table.Table:
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first, no_wrap=True)
    for title in others:
        table.add_column(title, justify="left" if title == "along" else "right", no_wrap=True)
    return table

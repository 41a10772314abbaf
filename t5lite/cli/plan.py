"""`t5lite plan`."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import rich.console
import rich.table

from t5lite.cli.documents import json_document
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.run_files import load_roots
from t5lite.core.errors import UserError
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.models.flops import train_flops
from t5lite.parallel.hardware import Device, device_of
from t5lite.parallel.mesh import POPULATION
from t5lite.planning.costs import Bound, Costs, bound_of, by_kind_and_axis, costs_of
from t5lite.planning.gathers import unsplit_arrays
from t5lite.planning.remedies import remedies
from t5lite.planning.suggest import Candidate, candidates, take_candidate
from t5lite.planning.topology import devices_of
from t5lite.training.program import train_program
from t5lite.training.run import Run
from t5lite.training.state import state_shapes
from t5lite.training.step import lower_train_step


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


def plan_command(flags: Any, bindings: Sequence[str]) -> None:
    """Compiles the step of a run for simulated devices and prints its costs."""
    quiet_libraries()
    if flags.topology is None:
        raise UserError("plan needs --topology, such as v5e:16x16, v5p:4x4x4 or cpu:8")
    devices = devices_of(flags.topology, flags.slices)
    (run,) = load_roots(flags, bindings, "train", needs_vocabulary=False)
    if run.mesh.dcn is None and flags.slices > 1:
        # Simulated devices do not know their slice.
        run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, dcn=flags.slices))
    console = rich.console.Console(stderr=flags.json, highlight=False, soft_wrap=True)
    name = f"{flags.slices} * {flags.topology}" if flags.slices > 1 else flags.topology
    chosen = None
    if flags.suggest:
        chosen, made = suggest(run, devices, name, console, tries=flags.tries)
    else:
        made = plan(run, devices, name)
    if flags.hlo and made.costs.program is not None:
        pathlib.Path(flags.hlo).write_text(made.costs.program.text)
    if flags.json:
        report = plan_as_json(made)
        suggested = {} if chosen is None else {"suggested": chosen.bindings}
        print(json_document(report | suggested))
        return
    print_plan(console, made)
    if chosen is not None:
        console.print("\nthe best candidate:")
        console.print("  " + " ".join(f"--gin.{b}" for b in chosen.bindings), markup=False)


def plan(run: Run, devices: Sequence[Any], topology: str) -> Plan:
    """Returns the costs of the step of `run` on `devices`."""
    mesh = run.mesh.make(devices)
    if POPULATION in mesh.shape:
        raise UserError(
            "plan compiles a single run: bind Mesh.population=1 and use the devices of one group"
        )
    program = train_program(run, mesh)
    device = device_of(devices[0].device_kind)
    costs = costs_of(
        lower_train_step(program),
        program.state.params,
        program.state.opt_state,
        mesh.shape,
        model_flops=run.batch_size * train_flops(run.model, run.layout.lengths) / mesh.size,
        device=device,
    )
    return Plan(
        run=run,
        topology=topology,
        num_devices=mesh.size,
        kind=devices[0].device_kind,
        device=device,
        mesh=mesh.shape,
        batch_shares=mesh.shares("batch"),
        costs=costs,
        whole=()
        if costs.program is None or mesh.shares("batch") == 1
        else unsplit_arrays(
            costs.program,
            program.state.params,
            rows=run.batch_size // run.microbatches,
            lengths=run.layout.lengths,
            embed_dim=run.model.config.embed_dim,
        ),
    )


def suggest(
    run: Run, devices: Sequence[Any], topology: str, console: rich.console.Console, *, tries: int
) -> tuple[Candidate, Plan]:
    """Compiles the most promising candidates in turn, and returns the one with the lowest bound.

    Raises:
        UserError: if none of the compiled candidates fits.
    """
    device = device_of(devices[0].device_kind)
    if device is None:
        raise UserError(
            f"--suggest needs devices with known rates, such as v5e:16x16, got {topology}"
        )
    # The run's sizes of the axes that are searched do not matter.
    mesh = dataclasses.replace(run.mesh, data=-1, fsdp=1, tensor=1).make(devices)
    shapes, _ = state_shapes(run.model, run.hyperparameters, run.param_dtype, run.trainable)
    params, optimizer = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (shapes.params, shapes.opt_state)
    )
    left = candidates(
        run.model,
        run.layout.lengths,
        batch_size=run.batch_size,
        mesh=mesh.shape,
        params_bytes=params,
        optimizer_bytes=0 if run.offload_optimizer else optimizer,
        device=device,
    )
    factor = 1.0
    best: tuple[Candidate, Plan] | None = None
    for _ in range(min(tries, len(left))):
        choice = take_candidate(left, device, factor)
        made = plan(_with(run, choice), devices, topology)
        bound = made.bound
        if bound is None or not made.costs.fits:
            factor = max(factor, made.costs.memory.total / choice.bytes)
            result = f"does not fit, {made.costs.memory.missing / 1e9:.1f} GB missing"
        else:
            result = f"at least {bound.seconds:.4g} s a step, MFU at most {bound.mfu_fraction:.1%}"
            if best is None or best[1].bound is None or bound.seconds < best[1].bound.seconds:
                best = choice, made
        console.print(f"{' '.join(choice.bindings)}: {result}", markup=False)
    if best is None:
        raise UserError(
            f"--suggest: none of the {tries} most promising candidates fits {topology}; take more "
            "devices, a smaller batch, train.param_dtype=bfloat16 or more --tries"
        )
    return best


def _with(run: Run, choice: Candidate) -> Run:
    config = dataclasses.replace(run.model.config, remat=choice.remat)
    return dataclasses.replace(
        run,
        mesh=dataclasses.replace(run.mesh, **dict[str, Any](choice.mesh)),
        model=run.model.clone(config=config),
        microbatches=choice.microbatches,
    )


def plan_as_json(made: Plan) -> dict[str, Any]:
    """Returns the plan as plain data for JSON; bytes and FLOPs are of each device."""
    costs, bound = made.costs, made.bound
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
    return remedies(
        made.costs,
        run.model,
        made.mesh,
        rows=run.batch_size // made.batch_shares,
        microbatches=run.microbatches,
        loss_chunks=run.loss.chunks if isinstance(run.loss, CrossEntropy) else None,
        param_dtype=run.param_dtype,
    )


def print_plan(console: rich.console.Console, made: Plan) -> None:
    """Prints a plan."""
    costs, memory = made.costs, made.costs.memory
    split = ", ".join(f"{axis} {size}" for axis, size in made.mesh.items() if size > 1)
    console.print(
        f"{made.topology}: {made.num_devices} devices of {made.kind}; mesh: {split or 'none'}; "
        f"{made.run.batch_size} rows a step\n"
    )
    table = _table("memory on each device", "MB")
    names = {
        "parameters": memory.params,
        "optimizer state": memory.optimizer,
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
            "count as one, so that FLOPs and traffic are higher than printed here\n"
        )
    table = _table("each device sends in a step", "along", "times", "MB")
    for row in by_kind_and_axis(costs.collectives):
        along = ", ".join(row["axes"])
        table.add_row(row["kind"], along, f"{row['times']:,}", f"{row['sent_bytes'] / 1e6:,.1f}")
    console.print(table)
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

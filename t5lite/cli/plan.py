"""`t5lite plan`."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import rich.console

from t5lite.cli.documents import json_document
from t5lite.cli.paths import user_path
from t5lite.cli.plan_report import Plan, plan_as_json, print_plan
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.run_files import load_roots
from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.parallel.hardware import device_of
from t5lite.parallel.mesh import POPULATION
from t5lite.planning.costs import costs_of
from t5lite.planning.gathers import unsplit_arrays
from t5lite.planning.suggest import Candidate, candidates, take_candidate
from t5lite.planning.topology import devices_of
from t5lite.training.frozen import open_frozen
from t5lite.training.program import train_program
from t5lite.training.run import Run
from t5lite.training.state import state_shapes
from t5lite.training.step import lower_train_step
from t5lite.training.trainable import trainable_names


def plan_command(flags: Any, bindings: Sequence[str]) -> None:
    """Compiles the step of a run for simulated devices and prints its costs.

    Raises:
        UserError: for a missing topology, a flag that is not read, or, with `--suggest`, if no
            candidate fits.
    """
    quiet_libraries()
    if flags.topology is None:
        raise UserError("plan needs --topology, such as v5e:16x16, v5p:4x4x4 or cpu:8")
    if flags["tries"].present and not flags.suggest:
        raise UserError(f"--tries is for --suggest, got --tries={flags.tries} without it")
    hlo = _writable_file("--hlo", flags.hlo) if flags.hlo else None
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
    if hlo is not None and made.costs.program is None:
        console.print(f"--hlo={flags.hlo} not written: XLA compiles no program that does not fit")
    elif hlo is not None and made.costs.program is not None:
        hlo.write_text(made.costs.program.text)
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
    """Returns the costs of the step of `run` on `devices`.

    Raises:
        UserError: if the mesh does not fit the devices, or trains several runs.
    """
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
        (program.state.opt_state, program.state.average, program.state.ranks),
        mesh.shape,
        model_flops=program.flops_per_step / mesh.size,
        device=device,
        frozen={name: part.params for name, part in program.frozen.items()},
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
            config=run.model.config,
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
    shapes, _ = state_shapes(
        run.model, run.hyperparameters, run.param_dtype, run.trainable, run.base_dtype
    )
    params, optimizer = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (shapes.params, (shapes.opt_state, shapes.average, shapes.ranks))
    )
    frozen = open_frozen(run, mesh).values()
    left = candidates(
        run.model,
        run.layout.lengths,
        trained=trainable_names("train.trainable", run.trainable, by_name(shapes.params)),
        batch_size=run.batch_size,
        mesh=mesh.shape,
        params_bytes=params,
        optimizer_bytes=0 if run.offload_optimizer else optimizer,
        device=device,
        frozen_bytes=sum(
            leaf.size * leaf.dtype.itemsize
            for part in frozen
            for leaf in jax.tree.leaves(part.params)
        ),
        frozen_flops=sum(part.flops_per_row for part in frozen),
    )
    factor = 1.0
    best: tuple[Candidate, Plan] | None = None
    for _ in range(min(tries, len(left))):
        choice = take_candidate(left, device, factor)
        made = plan(_with_candidate(run, choice), devices, topology)
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


def _writable_file(flag: str, text: str) -> pathlib.Path:
    """Returns the path of a file that can be written after a long compilation."""
    path = user_path(flag, text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"{flag} must be a file in an existing directory, got {text}")
    return path


def _with_candidate(run: Run, choice: Candidate) -> Run:
    config = dataclasses.replace(run.model.config, remat=choice.remat)
    return dataclasses.replace(
        run,
        mesh=dataclasses.replace(run.mesh, **dict[str, Any](choice.mesh)),
        model=run.model.clone(config=config),
        microbatches=choice.microbatches,
    )

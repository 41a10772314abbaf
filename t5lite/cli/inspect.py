"""`t5lite inspect`."""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import rich.console
import rich.table

from t5lite import configurables
from t5lite.cli.quiet import quiet_libraries
from t5lite.core.errors import UserError
from t5lite.models.architectures import Model, parameters
from t5lite.models.description import describe, model_of
from t5lite.models.flops import train_flops
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import sharding_of
from t5lite.training.checkpoints import find_checkpoint, open_checkpoint
from t5lite.training.trainable import trainable_names


def inspect_command(flags: Any, bindings: Sequence[str]) -> None:
    """Prints the resolved configuration, the parameters of the model, and the FLOPs of a step."""
    quiet_libraries()
    if flags.checkpoint is not None:
        if flags.gin_file or bindings:
            raise UserError("inspect takes either --checkpoint, or a run file and bindings")
        report: dict[str, Any] = {"checkpoint": flags.checkpoint}
        model = _saved_model(flags.checkpoint)
        mesh = config = trainable = None
        report["model"] = describe(model)
    else:
        (run,) = configurables.load(flags.gin_file, bindings, flags.gin_search_paths, "train")
        model = run.model
        mesh = run.mesh.make()
        config = configurables.resolved_text()
        trainable = run.trainable
        lengths = run.layout.lengths
        per_row = train_flops(model, lengths)
        report = {
            "config": config,
            "model": describe(model),
            "mesh": mesh.shape,
            "batch_size": run.batch_size,
            "lengths_tokens": lengths,
            "train_flops_per_step": run.batch_size * per_row,
        }
    report["parameters"] = parameter_rows(model, mesh, trainable)
    if flags.json:
        print(json.dumps(report))
        return
    # Wide enough for every name: a terminal may wrap lines, but nothing is cut.
    console = rich.console.Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 180)
    if config is not None:
        console.print(config.strip(), markup=False)
        console.print()
    console.print(_table(report["parameters"]))
    _print_totals(console, report)


def parameter_rows(
    model: Model, mesh: DeviceMesh | None, trainable: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Returns for each parameter name, shape, axes, sharding, count, bytes and initialiser.

    Args:
        trainable: patterns of the parameters that train; None if no run says which.

    Raises:
        UserError: if a pattern matches no parameter.
    """
    rows = []
    boxes = parameters(model)
    trained = None
    if trainable is not None:
        trained = trainable_names("train.trainable", trainable, boxes)
    for name, box in boxes.items():
        shape, axes = tuple(box.value.shape), tuple(box.names)
        count = math.prod(shape)
        row: dict[str, Any] = {"name": name, "shape": list(shape), "axes": list(axes)}
        size = count * box.value.dtype.itemsize
        if mesh is not None:
            sharding = sharding_of(axes, shape, mesh, owner=name)
            shares = count // math.prod(sharding.shard_shape(shape))
            row |= {"sharding": _spec(sharding), "bytes_per_device": size // shares}
        if trained is not None:
            row["trained"] = name in trained
        row |= {"parameters": count, "bytes": size, "initializer": box.initializer}
        rows.append(row)
    return rows


def _spec(sharding: jax.sharding.NamedSharding) -> list[str | None]:
    """Returns the mesh axes that split each dimension; an axis of size 1 splits nothing."""
    named: list[str | None] = []
    for axes in sharding.spec:
        names = (axes,) if isinstance(axes, str) else (axes or ())
        splitting = [name for name in names if sharding.mesh.shape[name] > 1]
        named.append("*".join(splitting) or None)
    return named


def _table(rows: Sequence[dict[str, Any]]) -> rich.table.Table:
    table = rich.table.Table(box=None, header_style="bold")
    has_mesh = "sharding" in rows[0]
    has_constants = not all(row.get("trained", True) for row in rows)
    table.add_column("parameter", no_wrap=True)
    table.add_column("shape: axes", no_wrap=True)
    if has_mesh:
        table.add_column("split by", no_wrap=True)
    for title in ("parameters", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("initialized as", no_wrap=True)
    if has_constants:
        table.add_column("trains", no_wrap=True)
    for row in rows:
        dims = ", ".join(f"{size} {a}" for size, a in zip(row["shape"], row["axes"], strict=True))
        split = [", ".join(f"{a}" for a in row["sharding"] if a) or "-"] if has_mesh else []
        size = f"{row['bytes'] / 1e6:,.2f}"
        cells = [row["name"], dims, *split, f"{row['parameters']:,}", size, row["initializer"]]
        if has_constants:
            cells.append("yes" if row["trained"] else "no")
        table.add_row(*cells)
    return table


def _print_totals(console: rich.console.Console, report: dict[str, Any]) -> None:
    rows = report["parameters"]
    count, size = (sum(row[key] for row in rows) for key in ("parameters", "bytes"))
    console.print(f"\n{count:,} parameters, {size / 1e9:,.3f} GB in float32")
    trained = sum(row["parameters"] for row in rows if row.get("trained", True))
    if trained < count:
        console.print(f"{trained:,} of them train ({trained / count:.2%}), the others are constant")
    if "mesh" in report:
        per_device = sum(row["bytes_per_device"] for row in rows)
        split = [f"{name} {n}" for name, n in report["mesh"].items() if n > 1]
        mesh = ", ".join(split) or "1 device"
        console.print(f"{per_device / 1e9:,.3f} GB on each device of the mesh ({mesh})")
        console.print(
            f"{report['train_flops_per_step'] / 1e12:,.4g} TFLOP a step of "
            f"{report['batch_size']} rows, by the formula"
        )


def _saved_model(path: str) -> Model:
    found = find_checkpoint(pathlib.Path(path))
    if found is None:
        raise UserError(f"--checkpoint {path} must be a MODEL_DIR or checkpoints/STEP of t5lite")
    with open_checkpoint(found) as (checkpoints, step):
        return model_of(checkpoints.about(step), found)

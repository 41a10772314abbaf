"""`t5lite inspect`."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from t5lite import configurables
from t5lite.cli.columns import columns_text, terminal_width
from t5lite.cli.documents import json_document
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.run_files import load_roots
from t5lite.cli.selection import chosen_checkpoints
from t5lite.cli.verify import verify_checkpoints
from t5lite.core.counts import counted
from t5lite.core.errors import UserError
from t5lite.interop.families import transformers_class
from t5lite.models.description import describe, model_of
from t5lite.models.flops import train_flops
from t5lite.models.model import Model, parameters
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import sharding_of
from t5lite.training.frozen import describe_frozen, open_frozen
from t5lite.training.trainable import trainable_names


def inspect_command(flags: Any, bindings: Sequence[str]) -> None:
    """Prints the resolved configuration, the parameters of the model, and the FLOPs of a step.

    Raises:
        UserError: for both a checkpoint and a run file or bindings, or if a checkpoint that is
            verified is damaged.
    """
    quiet_libraries()
    if flags.base is not None and not flags.verify:
        raise UserError(f"inspect --base is for --verify, got --base={flags.base}; leave it out")
    if flags.checkpoint is not None:
        if flags.gin_file or bindings:
            raise UserError(
                "inspect takes either --checkpoint, or a run file and bindings, got "
                f"--checkpoint={flags.checkpoint} and "
                f"{flags.gin_file[0] if flags.gin_file else f'--gin.{bindings[0]}'}"
            )
        if flags.verify:
            verify_checkpoints(flags.checkpoint, base=flags.base, as_json=flags.json)
            return
        report: dict[str, Any] = {"checkpoint": flags.checkpoint}
        chosen = chosen_checkpoints(None, flags.checkpoint, 1)[0]
        model = model_of(chosen.about, chosen.path)
        mesh = config = trainable = None
        report["model"] = describe(model)
    else:
        if flags.verify:
            raise UserError("inspect --verify needs --checkpoint=MODEL_DIR or a checkpoint")
        (run,) = load_roots(flags, bindings, "train", needs_vocabulary=False)
        model = run.model
        mesh = run.mesh.make()
        config = configurables.resolved_text()
        trainable = run.trainable
        lengths = run.layout.lengths
        trained = trainable_names("train.trainable", trainable, parameters(model))
        frozen = open_frozen(run, mesh)
        per_row = train_flops(model, lengths, trained)
        per_row += sum(part.flops_per_row for part in frozen.values())
        report = {
            "config": config,
            "model": describe(model),
            "mesh": mesh.shape,
            "batch_size": run.batch_size,
            "lengths_tokens": lengths,
            "train_flops_per_step": run.batch_size * per_row,
            **({"frozen": describe_frozen(frozen)} if frozen else {}),
        }
    found = transformers_class(model)
    report["transformers"] = None if found is None else found._asdict()
    report["parameters"] = parameter_rows(model, mesh, trainable)
    if flags.json:
        print(json_document(report))
        return
    if config is not None:
        print(f"{config.strip()}\n")
    print(_table(report["parameters"]))
    written = "has no class for this model"
    if found is not None:
        written = f"has {found.name} for this model, of the family {found.family}"
    print(f"\ntransformers {written}")
    _print_totals(report)


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
        shape = tuple(box.value.shape)
        axes = tuple(box.names)
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
    """Returns the mesh axes that shard each dimension; an axis of size 1 shards nothing."""
    named: list[str | None] = []
    for axes in sharding.spec:
        names = (axes,) if isinstance(axes, str) else (axes or ())
        splitting = [name for name in names if sharding.mesh.shape[name] > 1]
        named.append("*".join(splitting) or None)
    return named


def _table(rows: Sequence[dict[str, Any]]) -> str:
    has_mesh = "sharding" in rows[0]
    has_constants = not all(row.get("trained", True) for row in rows)
    titles = ["parameter", "shape: axes", *(["sharded by"] if has_mesh else [])]
    titles += ["parameters", "MB", "initialized as", *(["trains"] if has_constants else [])]
    lines = []
    for row in rows:
        dims = ", ".join(f"{size} {a}" for size, a in zip(row["shape"], row["axes"], strict=True))
        cells = [row["name"], dims]
        if has_mesh:
            cells.append(", ".join(axis for axis in row["sharding"] if axis) or "-")
        cells += [f"{row['parameters']:,}", f"{row['bytes'] / 1e6:,.2f}", row["initializer"]]
        if has_constants:
            cells.append("yes" if row["trained"] else "no")
        lines.append(cells)
    left = set(titles) - {"parameters", "MB"}
    return columns_text(titles, lines, width=terminal_width(), left=left)


def _print_totals(report: dict[str, Any]) -> None:
    rows = report["parameters"]
    count, size = (sum(row[key] for row in rows) for key in ("parameters", "bytes"))
    print(f"{counted(count, 'parameter')}, {size / 1e9:,.3f} GB in float32")
    trained = sum(row["parameters"] for row in rows if row.get("trained", True))
    if trained < count:
        print(f"{trained:,} of them train ({trained / count:.2%}), the others are constant")
    if "mesh" in report:
        per_device = sum(row["bytes_per_device"] for row in rows)
        split = [f"{name} {n}" for name, n in report["mesh"].items() if n > 1]
        mesh = ", ".join(split) or "1 device"
        print(f"{per_device / 1e9:,.3f} GB on each device of the mesh ({mesh})")
        for name, described in report.get("frozen", {}).items():
            print(f"the {name} is {described['checkpoint']}")
        print(
            f"{report['train_flops_per_step'] / 1e12:,.4g} TFLOP a step of "
            f"{counted(report['batch_size'], 'row')}, by the formula"
        )

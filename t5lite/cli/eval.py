"""`t5lite eval`."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import rich.console
import rich.table

from t5lite import configurables
from t5lite.cli.quiet import quiet_libraries
from t5lite.core.errors import UserError
from t5lite.inference.evaluate import make_evaluate
from t5lite.parallel.processes import start_processes
from t5lite.parallel.sharding import on_mesh
from t5lite.training.checkpoints import FOLDER, Checkpoints, open_checkpoint
from t5lite.training.run import Run
from t5lite.training.state import abstract_state


def run(flags: Any, bindings: Sequence[str]) -> None:
    """Scores checkpoints on a split, prints a table and appends to `MODEL_DIR/eval/SPLIT.jsonl`."""
    quiet_libraries()
    run, evaluation = configurables.load(
        flags.gin_file, bindings, flags.gin_search_paths, "train", "evaluate"
    )
    split = evaluation.split or run.eval_split
    batch_size = evaluation.batch_size or run.batch_size
    start_processes()
    mesh = run.mesh.make()
    evaluate = make_evaluate(
        run.model, run.task, run.layout, run.loss, mesh, split=split, batch_size=batch_size
    )
    with on_mesh(mesh):
        shapes, _ = abstract_state(run.model, run.hyperparameters, mesh)
    results = []
    with _checkpoints(run, flags.checkpoint) as (checkpoints, steps):
        for step in steps:
            scores = evaluate(checkpoints.restore_params(step, shapes.params))
            results.append(
                {"checkpoint": checkpoints.path(step), "step": step, "split": split, **scores}
            )
    if jax.process_index() == 0:
        if flags.json:
            print(json.dumps(results))
        else:
            _print_table(results)
        _write(pathlib.Path(run.model_dir) / "eval" / f"{split}.jsonl", results)


@contextlib.contextmanager
def _checkpoints(run: Run, which: str) -> Iterator[tuple[Checkpoints, list[int]]]:
    if "/" in which:
        with open_checkpoint(which) as (checkpoints, step):
            yield checkpoints, [step]
        return
    folder = pathlib.Path(run.model_dir) / FOLDER
    found = []
    if folder.is_dir():
        checkpoints = Checkpoints(folder, read_only=True)
        found = checkpoints.steps()
    if not found:
        raise UserError(f"{run.model_dir} holds no checkpoint; train it first, or use --checkpoint")
    with contextlib.closing(checkpoints):
        if which in ("latest", "all"):
            yield checkpoints, found[-1:] if which == "latest" else found
            return
        wanted = which.split(",")
        for name in wanted:
            if not (name.isdigit() and int(name) in found):
                have = ", ".join(map(str, found))
                raise UserError(f"{run.model_dir} holds no checkpoint {name!r}; it has {have}")
        yield checkpoints, [int(name) for name in wanted]


def _write(path: pathlib.Path, results: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(result) + "\n" for result in results)


# What the table shows of a result, narrow enough for 80 columns, and how.
COLUMNS = {
    "step": ("step", "d"),
    "loss_nats_per_token": ("loss", ".4f"),
    "cross_entropy_nats_per_token": ("cross-entropy", ".4f"),
    "perplexity": ("perplexity", ".5g"),
    "accuracy_fraction": ("accuracy", ".1%"),
    "target_tokens": ("tokens", ",.0f"),
    "examples": ("examples", ",.0f"),
}


def _print_table(results: list[dict[str, Any]]) -> None:
    table = rich.table.Table(title=f"{results[0]['split']}, losses in nats per token", box=None)
    for title, _ in COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        table.add_row(*(format(result[name], form) for name, (_, form) in COLUMNS.items()))
    rich.console.Console().print(table)

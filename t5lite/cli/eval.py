"""`t5lite eval`."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table
from jax.experimental import multihost_utils

from t5lite import configurables
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.selection import Chosen, chosen_checkpoints, open_run
from t5lite.core.errors import UserError
from t5lite.inference.evaluate import Evaluate, Evaluation, make_evaluate
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.processes import start_processes
from t5lite.training.checkpoints import FOLDER, Checkpoints
from t5lite.training.run import Run
from t5lite.training.state import abstract_params

# How often a folder that is watched is looked at.
WATCH_SECONDS = 5.0


def run(flags: Any, bindings: Sequence[str]) -> None:
    """Scores checkpoints on a split, prints tables and appends to `MODEL_DIR/eval/SPLIT.jsonl`."""
    quiet_libraries()
    trained, evaluation = configurables.load(
        flags.gin_file, bindings, flags.gin_search_paths, "train", "evaluate"
    )
    start_processes()
    mesh = trained.mesh.make()
    run, evaluate = evaluation_of(trained, evaluation, mesh)
    shapes = abstract_params(run.model, mesh)
    if flags.watch:
        _watch(run, evaluate, shapes, flags)
        return
    with chosen_checkpoints(run.model_dir, flags.checkpoint, flags.average) as chosen:
        results = []
        for one in chosen:
            results.append(_result(run, one, evaluate(one.params(shapes))))
            # At once: the next may take long, or fail.
            _record(run, results[-1])
    _print(results, as_json=flags.json)


def evaluation_of(run: Run, evaluation: Evaluation, mesh: DeviceMesh) -> tuple[Run, Evaluate]:
    """Returns the run with the task and split that are to be scored, and what scores them."""
    run = dataclasses.replace(
        run,
        task=evaluation.task or run.task,
        eval_split=evaluation.split or run.eval_split,
    )
    evaluate = make_evaluate(
        *(run.model, run.task, run.layout, run.loss, mesh),
        split=run.eval_split,
        # As many rows as are trained on at a time: what fits there fits here.
        batch_size=evaluation.batch_size or run.batch_size // run.microbatches,
        decoding=evaluation.decoding,
    )
    return run, evaluate


def _result(run: Run, chosen: Chosen, scores: dict[str, float]) -> dict[str, Any]:
    averaged = {"averaged_steps": list(chosen.steps)} if len(chosen.steps) > 1 else {}
    place = {"checkpoint": chosen.path, "step": chosen.step, "split": run.eval_split}
    return {**place, **averaged, **scores}


def _print(results: list[dict[str, Any]], *, as_json: bool) -> None:
    """Prints results, in the first process."""
    if jax.process_index() > 0:
        return
    if as_json:
        print(json.dumps(results), flush=True)
    else:
        _print_tables(results)


def _record(run: Run, result: dict[str, Any]) -> None:
    """Appends a result to the run's record, in the first process."""
    if jax.process_index() > 0:
        return
    path = _record_path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def _record_path(run: Run) -> pathlib.Path:
    return pathlib.Path(run.model_dir) / "eval" / f"{run.eval_split}.jsonl"


def _watch(run: Run, evaluate: Evaluate, shapes: Any, flags: Any) -> None:
    """Scores every checkpoint of the run once, as they come, until that of its last step."""
    if flags.checkpoint != "latest" or flags.average != 1:
        raise UserError("--watch goes with neither --checkpoint nor --average")
    pathlib.Path(run.model_dir, FOLDER).mkdir(parents=True, exist_ok=True)
    console = rich.console.Console(stderr=True, quiet=jax.process_index() > 0, highlight=False)
    with open_run(run.model_dir) as checkpoints:
        recorded = _recorded(run, checkpoints)
        for step in _new_steps(checkpoints, recorded, last=run.total_steps):
            chosen = Chosen(checkpoints, (step,))
            try:
                params = chosen.params(shapes)
            except UserError:
                # The run keeps only so many, and takes a while to delete one.
                time.sleep(WATCH_SECONDS)
                if step in checkpoints.reload():
                    raise
                console.print(f"step {step} was deleted before it was scored", markup=False)
                continue
            result = _result(run, chosen, evaluate(params))
            _record(run, result)
            _print([result], as_json=flags.json)


def _recorded(run: Run, checkpoints: Checkpoints) -> set[int]:
    """Returns the steps of these checkpoints that the run's record has scores of."""
    path = _record_path(run)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # One without its end was cut off.
    results = [json.loads(line) for line in lines if line.endswith("\n")]
    return {
        result["step"]
        for result in results
        if "averaged_steps" not in result
        and result["checkpoint"] == checkpoints.path(result["step"])
    }


def _new_steps(checkpoints: Checkpoints, done: set[int], *, last: int) -> Iterator[int]:
    """Yields the steps of checkpoints as they appear: in all processes what the first one sees."""
    while True:
        waiting = [step for step in checkpoints.reload() if step not in done]
        seen = (last in done and not waiting, waiting[0] if waiting else -1)
        is_over, step = multihost_utils.broadcast_one_to_all(np.array(seen, np.int32)).tolist()
        if is_over:
            return
        if step < 0:
            time.sleep(WATCH_SECONDS)
            continue
        done.add(step)
        yield step


# What the first table shows of a result, narrow enough for 80 columns, and how.
COLUMNS = {
    "step": ("step", "d"),
    "loss_nats_per_token": ("loss", ".4f"),
    "cross_entropy_nats_per_token": ("cross-entropy", ".4f"),
    "perplexity": ("perplexity", ".5g"),
    "accuracy_fraction": ("accuracy", ".1%"),
    "target_tokens": ("tokens", ",.0f"),
    "examples": ("examples", ",.0f"),
}


def _print_tables(results: list[dict[str, Any]]) -> None:
    """Prints what all tasks have in one table, and all other scores in another."""
    console = rich.console.Console()
    table = rich.table.Table(title=f"{results[0]['split']}, losses in nats per token", box=None)
    for title, _ in COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        table.add_row(*(format(result[name], form) for name, (_, form) in COLUMNS.items()))
    console.print(table)
    others = [
        name
        for name, value in results[0].items()
        if isinstance(value, float) and name not in COLUMNS
    ]
    # Wide enough for every name: a terminal may wrap lines, but nothing is left out.
    console.width = max(console.width, 180)
    rest = rich.table.Table(box=None)
    rest.add_column("score", no_wrap=True)
    for result in results:
        rest.add_column(f"step {result['step']}", justify="right", no_wrap=True)
    for name in others:
        rest.add_row(name, *(format(result[name], ".5g") for result in results))
    console.print(rest)

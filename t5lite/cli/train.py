"""`t5lite train`."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from t5lite import configurables
from t5lite.cli.eval import evaluation_of
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.run_files import keep_vocabulary, load_roots
from t5lite.cli.show import show_examples
from t5lite.core.run_directory import attempt
from t5lite.inference.evaluate import Evaluation
from t5lite.parallel.processes import start_processes
from t5lite.training.checkpoints import FOLDER
from t5lite.training.loop import train
from t5lite.training.program import train_program
from t5lite.training.run import Run


def load_run(flags: Any, bindings: Sequence[str]) -> tuple[Run, Evaluation]:
    """Returns the run that gin describes, and its evaluation."""
    run, evaluation = load_roots(flags, bindings, "train", "evaluate")
    return dataclasses.replace(run, eval_split=evaluation.split or run.eval_split), evaluation


def train_command(flags: Any, bindings: Sequence[str]) -> None:
    """Builds the run from gin, trains, and shows examples if asked to."""
    quiet_libraries()
    run, evaluation = load_run(flags, bindings)
    start_processes()
    mesh = run.mesh.make()
    program = train_program(run, mesh)
    model_dir = pathlib.Path(run.model_dir)
    model_dir.mkdir(parents=True, exist_ok=True)
    is_first = jax.process_index() == 0
    if is_first:
        keep_vocabulary(run.task.vocabulary, model_dir)
    _, evaluate = evaluation_of(run, evaluation, mesh)
    config_text = configurables.resolved_text()
    command = ["t5lite", *sys.argv[1:]]
    with attempt(model_dir, command) if is_first else contextlib.nullcontext():
        state = train(program, evaluate=evaluate, config_text=config_text, command=command)
    if run.show_examples:
        show_examples(run, mesh, state.params)
    if is_first:
        print(
            f"checkpoints: {model_dir / FOLDER}; t5lite eval --checkpoint={model_dir} scores them"
        )

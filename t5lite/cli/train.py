"""`t5lite train`."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from t5lite.cli.eval import evaluation_of
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.run_files import keep_vocabulary, load_roots, run_config
from t5lite.cli.show import show_examples
from t5lite.core.run_directory import attempt
from t5lite.inference.evaluate import Evaluation
from t5lite.inference.predictions import ReportProgress
from t5lite.parallel.peers import lost_peers_named
from t5lite.parallel.processes import start_processes
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.determinism import verify_determinism
from t5lite.training.loop import train
from t5lite.training.program import train_program
from t5lite.training.run import Run


def load_run(flags: Any, bindings: Sequence[str]) -> tuple[Run, Evaluation]:
    """Returns the run that gin describes, and its evaluation."""
    run, evaluation = load_roots(flags, bindings, "train", "evaluate")
    return dataclasses.replace(run, eval_split=evaluation.split or run.eval_split), evaluation


def announced(text: str) -> ReportProgress:
    """Returns a function that prints a line when progress is reported for the first time."""
    is_printed = False

    def report(what: str, done: int, total: int | None) -> None:
        nonlocal is_printed
        if not is_printed:
            print(text, flush=True)
        is_printed = True

    return report


def train_command(flags: Any, bindings: Sequence[str]) -> None:
    """Builds the run from gin, trains, and shows examples if asked to; or verifies determinism."""
    quiet_libraries()
    run, evaluation = load_run(flags, bindings)
    start_processes()
    mesh = run.mesh.make()
    program = train_program(run, mesh)
    if flags.verify_determinism:
        with lost_peers_named():
            print(verify_determinism(program, flags.verify_determinism))
        return
    model_dir = pathlib.Path(run.model_dir)
    model_dir.mkdir(parents=True, exist_ok=True)
    is_first = jax.process_index() == 0
    if is_first:
        keep_vocabulary(run.task.vocabulary, model_dir)
    announce = announced("compiling the evaluation") if is_first else lambda *_: None
    _, evaluate = evaluation_of(run, evaluation, mesh, announce)
    config_text = run_config(run.task.vocabulary)
    command = ["t5lite", *sys.argv[1:]]
    with contextlib.ExitStack() as stack:
        if is_first:
            stack.enter_context(attempt(model_dir, command))
        # Inside the attempt, which records what ended it.
        stack.enter_context(lost_peers_named())
        state = train(program, evaluate=evaluate, config_text=config_text, command=command)
    if run.show_examples:
        with lost_peers_named():
            show_examples(run, mesh, state.evaluated_params)
    if is_first:
        print(f"checkpoints: {model_dir / FOLDER}")
        print(f"score the latest: t5lite eval --checkpoint={model_dir}")

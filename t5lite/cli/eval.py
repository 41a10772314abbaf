"""`t5lite eval`."""

import dataclasses
import hashlib
import json
import pathlib
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.cli.checkpoint_scorer import CheckpointScorer, print_json
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.run_files import load_roots
from t5lite.cli.score_tables import print_score_tables
from t5lite.cli.selection import (
    LATEST,
    ChosenCheckpoint,
    check_bases,
    checkpoint_name,
    chosen_checkpoints,
    model_dir_of,
    open_run,
)
from t5lite.cli.work_progress import WorkProgress
from t5lite.core.errors import UserError
from t5lite.core.run_directory import ALL_STEPS, RESULT, read_result
from t5lite.data.text import vocabularies
from t5lite.inference.evaluate import Evaluation, Evaluator, make_evaluate
from t5lite.inference.predictions import ReportProgress
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.peers import lost_peers_named
from t5lite.parallel.processes import start_processes
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.checkpoint_names import base_checkpoint
from t5lite.training.run import Run
from t5lite.training.state import abstract_params
from t5lite.training.stored_checkpoints import StoredCheckpoints

# How often a watched directory is polled.
WATCH_SECONDS = 5.0


@lost_peers_named()
def eval_command(flags: Any, bindings: Sequence[str]) -> None:
    """Scores checkpoints on a split, prints tables and appends to `MODEL_DIR/eval/SPLIT.jsonl`."""
    quiet_libraries()
    if flags.watch:
        _check_watch(flags)
    trained, evaluation = _load(flags, bindings)
    start_processes()
    mesh = trained.mesh.make()
    progress = WorkProgress()
    run, evaluate = evaluation_of(trained, evaluation, mesh, progress.report)
    shapes = abstract_params(run.model, mesh)
    scorer = CheckpointScorer(run, evaluate, shapes, _identity(run, evaluation), progress)
    if flags.watch:
        _watch(scorer, flags)
    else:
        _score(scorer, flags)


def _load(flags: Any, bindings: Sequence[str]) -> tuple[Any, ...]:
    """Returns the run and its evaluation: without a run file, by the `config.gin` of a MODEL_DIR.

    The MODEL_DIR is the one that is named, whatever its `config.gin` says: it may have moved.
    """
    if flags.gin_file:
        return load_roots(flags, bindings, "train", "evaluate")
    model_dir = model_dir_of(flags.checkpoint)
    if model_dir is None:
        raise UserError(
            f"--checkpoint={flags.checkpoint} has no config.gin, which says what to score; name "
            "a MODEL_DIR or MODEL_DIR/checkpoints/STEP, or add the --gin_file of a run"
        )
    files = types.SimpleNamespace(
        gin_file=[str(model_dir / "config.gin")], gin_search_paths=flags.gin_search_paths
    )
    return load_roots(files, [f"train.model_dir={model_dir}", *bindings], "train", "evaluate")


def _score(scorer: CheckpointScorer, flags: Any) -> None:
    """Scores the checkpoints that the flags name."""
    results: list[dict[str, Any]] = []
    chosen = chosen_checkpoints(
        scorer.run.model_dir,
        flags.checkpoint,
        flags.average,
        flags.parameters,
        base=flags.base,
    )
    check_bases(chosen, flags.base)
    scorer.open_record()
    try:
        for one in chosen:
            results += scorer.results(one)
    finally:
        # Also after an error: these results are complete.
        if results:
            _print(results, as_json=flags.json)
    if not results:
        raise UserError("nothing was scored: all checkpoints were deleted meanwhile")


def evaluation_of(
    run: Run,
    evaluation: Evaluation,
    mesh: DeviceMesh,
    on_progress: ReportProgress = lambda what, done, total: None,
) -> tuple[Run, Evaluator]:
    """Returns the run with the task and split to score, and the function that scores them.

    Raises:
        UserError: if the task to score has another vocabulary than the run.
    """
    if evaluation.task is not None:
        trained = run.task.vocabulary.fingerprint
        vocabularies.check_same_vocabulary(
            trained, evaluation.task.vocabulary, "the run of evaluate.task"
        )
    run = dataclasses.replace(
        run,
        task=evaluation.task or run.task,
        eval_split=evaluation.split or run.eval_split,
    )
    evaluate = make_evaluate(
        run.model,
        run.task,
        run.layout,
        run.evaluation_loss,
        mesh,
        split=run.eval_split,
        # The number of rows that training has in memory at a time.
        batch_size=evaluation.batch_size or run.batch_size // run.microbatches,
        decoding=evaluation.decoding,
        on_progress=on_progress,
    )
    return run, evaluate


def _identity(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    """Returns what scores depend on besides the checkpoint, as JSON has it."""
    tasks = [
        [task.identity(run.eval_split), repr(task), task.versions_of_scores()]
        for task in run.task.tasks
    ]
    settings = [*tasks, repr(run.evaluation_loss), run.model.config.dtype]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    names = [task.name for task in run.task.tasks]
    identity: dict[str, Any] = {"tasks": names, "tasks_digest": digest[:16]}
    if any(task.metrics for task in run.task.tasks):
        identity["decoding"] = dataclasses.asdict(evaluation.decoding)
    return dict(json.loads(json.dumps(identity)))


def _print(results: list[dict[str, Any]], *, as_json: bool) -> None:
    """Prints results, in the first process."""
    if as_json:
        print_json(results)
    elif jax.process_index() == 0:
        print_score_tables(results)


def _check_watch(flags: Any) -> None:
    """Raises a UserError for flags that would make no difference to `--watch`."""
    if flags.average != 1:
        raise UserError(f"--watch conflicts with --average, got --average={flags.average}")
    if flags.checkpoint == LATEST:
        return
    if flags.gin_file:
        raise UserError(
            f"--watch of a --gin_file watches its MODEL_DIR, got --checkpoint={flags.checkpoint}; "
            "leave out one of them"
        )
    name = checkpoint_name(flags.checkpoint)
    model_dir = model_dir_of(flags.checkpoint)
    names_some = flags.checkpoint.endswith(f":{name.which}")
    if name.folder is not None and model_dir is not None:
        names_some |= name.folder.absolute() != model_dir
    if names_some:
        raise UserError(
            "--watch scores all checkpoints of a run: --checkpoint must be its MODEL_DIR, got "
            f"{flags.checkpoint}"
        )


def _watch(scorer: CheckpointScorer, flags: Any) -> None:
    """Scores every checkpoint of the run once, as it appears, until that of its last step."""
    run = scorer.run
    pathlib.Path(run.model_dir, FOLDER).mkdir(parents=True, exist_ok=True)
    checkpoints = open_run(run.model_dir, base_checkpoint("--base", flags.base))
    scorer.open_record()
    done = scorer.recorded(checkpoints, flags.parameters)
    for step in _new_steps(checkpoints, done, lambda: _last_step(run)):
        if results := scorer.results(ChosenCheckpoint(checkpoints, (step,), flags.parameters)):
            _print(results, as_json=flags.json)


def _last_step(run: Run) -> int:
    """Returns the last step of a run: that of its result if it ended before its last step."""
    model_dir = pathlib.Path(run.model_dir)
    result = read_result(model_dir) if (model_dir / RESULT).exists() else {}
    # The result of all steps may be that of a shorter run, which trains on.
    is_early = result.get("ended", ALL_STEPS) != ALL_STEPS
    return int(result["step"]) if is_early else run.total_steps


def _new_steps(
    checkpoints: StoredCheckpoints, done: set[int], last: Callable[[], int]
) -> Iterator[int]:
    """Yields the steps of checkpoints as they appear to the first process, in all processes."""
    while True:
        waiting = [step for step in checkpoints.steps() if step not in done]
        seen = (last() in done and not waiting, waiting[0] if waiting else -1)
        is_over, step = multihost_utils.broadcast_one_to_all(np.array(seen, np.int32)).tolist()
        if is_over:
            return
        if step < 0:
            time.sleep(WATCH_SECONDS)
            continue
        done.add(step)
        yield step

"""`t5lite eval`."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table
from jax.experimental import multihost_utils

from t5lite import configurables
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.selection import Chosen, chosen_checkpoints, open_run
from t5lite.cli.work_progress import WorkProgress
from t5lite.core.errors import UserError
from t5lite.core.run_directory import append_record, read_records
from t5lite.data.text import vocabularies
from t5lite.inference.evaluate import Evaluate, Evaluation, OnProgress, make_evaluate
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.processes import everywhere, start_processes
from t5lite.training.checkpoints import FOLDER, Checkpoints, Damaged
from t5lite.training.run import Run
from t5lite.training.state import abstract_params

# How often a folder that is watched is looked at.
WATCH_SECONDS = 5.0
# How often one that cannot be read is.
LOOK_SECONDS = 1.0
# A checkpoint that is being deleted changes within the first; in the second every process sees what
# one of them sees.
DELETION_SECONDS = 5.0
SIGHT_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Scorer:
    """What is scored, and by what.

    Args:
        run: with the task and the split that are scored.
        evaluate: from parameters to scores.
        shapes: of the parameters, with their places.
        told: what scores depend on besides the checkpoint; stands in every result.
        progress: where it is shown how far `evaluate` has come.
    """

    run: Run
    evaluate: Evaluate
    shapes: Any
    told: Mapping[str, Any]
    progress: WorkProgress

    def results(self, chosen: Chosen) -> list[dict[str, Any]]:
        """Returns the result of a checkpoint, recorded at once: the next may take long, or fail.

        Where the run that trains deleted it before it was read there is none, and a remark.
        """
        found = self._read(chosen)
        if found is None:
            self.progress.say(f"step {chosen.step} was deleted before it was scored")
            return []
        saved_at, params = found
        with self.progress:
            scores = self.evaluate(params)
        result = {
            "checkpoint": chosen.path,
            "step": chosen.step,
            "split": self.run.eval_split,
            **({"averaged_steps": list(chosen.steps)} if len(chosen.steps) > 1 else {}),
            "saved_at": saved_at,
            **self.told,
            **scores,
        }
        if jax.process_index() == 0:
            append_record(self.record, **result)
        return [result]

    def _read(self, chosen: Chosen) -> tuple[int, Any] | None:
        """Returns when a checkpoint was saved, and its parameters; None where it was deleted."""
        files, since = -1, 0.0
        while True:
            wrong = None
            try:
                chosen.check_same(self.run.model, self.run.task.vocabulary)
                found = chosen.saved_at, chosen.params(self.shapes)
            except Damaged as error:
                wrong = error
            # Or some processes would wait for others.
            if everywhere(wrong is None):
                return found
            # Perhaps it is being deleted, which takes a while, or not seen by every process yet.
            # What the first one sees counts.
            if (now := chosen.count_files()) != files:
                files, since = now, time.monotonic()
            time.sleep(LOOK_SECONDS)
            patience = DELETION_SECONDS if wrong else SIGHT_SECONDS
            is_there = set(chosen.steps) <= set(chosen.checkpoints.reload())
            seen = np.array([is_there, time.monotonic() - since > patience])
            is_there, is_over = multihost_utils.broadcast_one_to_all(seen).tolist()
            if not is_there:
                return None
            if is_over:
                raise wrong or Damaged(f"{chosen.path} cannot be read by another process")

    @property
    def record(self) -> pathlib.Path:
        """Where results go."""
        return pathlib.Path(self.run.model_dir) / "eval" / f"{self.run.eval_split}.jsonl"

    def open_record(self) -> None:
        """Makes sure that results can be recorded, before anything is scored."""
        if jax.process_index() == 0:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            self.record.open("a").close()

    def recorded(self, checkpoints: Checkpoints) -> set[int]:
        """Returns the steps of which there is a result that would be the same today."""
        done, results = set(), read_records(self.record)
        for step in checkpoints.steps():
            wanted = {"checkpoint": checkpoints.path(step), "averaged_steps": None, **self.told}
            with contextlib.suppress(Damaged):
                wanted["saved_at"] = checkpoints.saved_at(step)
            if any(all(r.get(name) == wanted[name] for name in wanted) for r in results):
                done.add(step)
        return done


def run(flags: Any, bindings: Sequence[str]) -> None:
    """Scores checkpoints on a split, prints tables and appends to `MODEL_DIR/eval/SPLIT.jsonl`."""
    quiet_libraries()
    trained, evaluation = configurables.load(
        flags.gin_file, bindings, flags.gin_search_paths, "train", "evaluate"
    )
    start_processes()
    mesh = trained.mesh.make()
    progress = WorkProgress()
    run, evaluate = evaluation_of(trained, evaluation, mesh, progress.at)
    shapes = abstract_params(run.model, mesh)
    scorer = Scorer(run, evaluate, shapes, _told(run, evaluation), progress)
    if flags.watch:
        _watch(scorer, flags)
    else:
        _score(scorer, flags)


def _score(scorer: Scorer, flags: Any) -> None:
    """Scores the checkpoints that the flags name."""
    results: list[dict[str, Any]] = []
    with chosen_checkpoints(scorer.run.model_dir, flags.checkpoint, flags.average) as chosen:
        scorer.open_record()
        try:
            for one in chosen:
                results += scorer.results(one)
        finally:
            # What was scored before something went wrong is told too.
            if results:
                _print(results, as_json=flags.json)
    if not results:
        raise UserError("nothing was scored: all checkpoints were deleted meanwhile")


def evaluation_of(
    run: Run,
    evaluation: Evaluation,
    mesh: DeviceMesh,
    on_progress: OnProgress = lambda what, done, total: None,
) -> tuple[Run, Evaluate]:
    """Returns the run with the task and split that are to be scored, and what scores them.

    Raises:
        UserError: where the task that is to be scored has another vocabulary than the run.
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
        *(run.model, run.task, run.layout, run.loss, mesh),
        split=run.eval_split,
        # As many rows as are trained on at a time: what fits there fits here.
        batch_size=evaluation.batch_size or run.batch_size // run.microbatches,
        decoding=evaluation.decoding,
        on_progress=on_progress,
    )
    return run, evaluate


def _told(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    """Returns what scores depend on besides the checkpoint, as JSON has it."""
    tasks = run.task.tasks
    all_of_them = [
        [task.identity(run.eval_split), repr(task), task.versions_of_scores()] for task in tasks
    ]
    rest = [repr(run.loss), run.model.config.dtype]
    digest = hashlib.sha256(json.dumps([*all_of_them, *rest]).encode()).hexdigest()
    told: dict[str, Any] = {"tasks": [task.name for task in tasks], "tasks_digest": digest[:16]}
    if any(task.metrics for task in tasks):
        told["decoding"] = dataclasses.asdict(evaluation.decoding)
    return dict(json.loads(json.dumps(told)))


def _print(results: list[dict[str, Any]], *, as_json: bool) -> None:
    """Prints results, in the first process."""
    if jax.process_index() > 0:
        return
    if as_json:
        print(json.dumps(results), flush=True)
    else:
        _print_tables(results)


def _watch(scorer: Scorer, flags: Any) -> None:
    """Scores every checkpoint of the run once, as they come, until that of its last step."""
    if flags.checkpoint != "latest" or flags.average != 1:
        raise UserError("--watch goes with neither --checkpoint nor --average")
    run = scorer.run
    pathlib.Path(run.model_dir, FOLDER).mkdir(parents=True, exist_ok=True)
    with open_run(run.model_dir) as checkpoints:
        scorer.open_record()
        done = scorer.recorded(checkpoints)
        for step in _new_steps(checkpoints, done, last=run.total_steps):
            if results := scorer.results(Chosen(checkpoints, (step,))):
                _print(results, as_json=flags.json)


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
    # In order, once each: a metric of one's own may tell other scores of another checkpoint.
    others = dict.fromkeys(
        name
        for result in results
        for name, value in result.items()
        if isinstance(value, float) and name not in COLUMNS
    )
    # Wide enough for every name: a terminal may wrap lines, but nothing is left out.
    console.width = max(console.width, 180)
    rest = rich.table.Table(box=None)
    rest.add_column("score", no_wrap=True)
    for result in results:
        rest.add_column(f"step {result['step']}", justify="right", no_wrap=True)
    for name in others:
        rest.add_row(name, *(format(r[name], ".5g") if name in r else "-" for r in results))
    console.print(rest)

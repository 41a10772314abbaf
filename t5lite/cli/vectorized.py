"""Trials of a launch in one program: `t5lite launch --on=local --vectorized=N`."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from t5lite import configurables
from t5lite.cli.eval import evaluation_of
from t5lite.cli.quiet import quiet_libraries
from t5lite.core.run_directory import RESULT
from t5lite.inference.evaluate import Evaluate
from t5lite.launching.launch import Launch
from t5lite.launching.local import alone
from t5lite.launching.study import Study
from t5lite.launching.trial import complete
from t5lite.training.population import Entrant, train_population
from t5lite.training.run import Run


def run_vectorized(
    launch: Launch, study: Study, numbers: Sequence[int], tell: Callable[[int, str], None]
) -> dict[int, str]:
    """Trains trials, `launch.vectorized` at a time, and returns how each ended.

    Args:
        tell: called with a trial's number and "started", or how it ended.

    Raises:
        UserError: where the trials differ in more than numbers.
        Preempted: where SIGTERM asked to stop, once all are saved.
    """
    quiet_libraries()
    ended: dict[int, str] = {}
    taken: dict[str, Any] = {}
    evaluations: dict[str, Evaluate] = {}

    def entrants() -> Iterator[Entrant]:
        for number in numbers:
            trial = study.take(number)
            if trial is None:
                continue
            # Whoever ran it may have been killed before it could tell.
            if (launch.model_dir(number) / RESULT).exists():
                ended[number] = complete(launch, study, number)
                tell(number, ended[number])
                continue
            arguments = launch.arguments(number, trial.params)
            run, evaluation = loaded(arguments[1:])
            taken[run.model_dir] = trial, evaluation
            tell(number, "started")
            yield Entrant(run, configurables.resolved_text(), ["t5lite", *arguments])

    def evaluate(run: Run) -> Evaluate:
        # Those with the same loss share their programs.
        key = repr(run.loss)
        if key not in evaluations:
            evaluations[key] = evaluation_of(run, taken[run.model_dir][1], mesh)[1]
        return evaluations[key]

    def on_scores(run: Run, step: int, scores: Mapping[str, float]) -> bool:
        trial = taken[run.model_dir][0]
        told = launch.scores(trial.number)
        return bool(launch.prune and told) and study.report(trial, *told[-1])

    def on_end(run: Run, how: str) -> None:
        number = taken[run.model_dir][0].number
        if how == "finished":
            ended[number] = complete(launch, study, number)
        else:
            ended[number] = "pruned" if how == "pruned" else "failed"
            study.tell(number, ended[number])
        tell(number, ended[number])

    first, _ = loaded(launch.arguments(0, launch.rows[0] if launch.rows else {})[1:])
    swept = any("dropout" in name for name in (*launch.space, *(launch.rows or [{}])[0]))
    mesh = first.mesh.make()
    with alone(pathlib.Path(launch.folder)):
        train_population(
            entrants(),
            min(launch.vectorized or 1, len(numbers)),
            mesh,
            evaluate=evaluate,
            dropout=swept or first.model.config.dropout_rate > 0,
            on_scores=on_scores,
            on_end=on_end,
        )
    return ended


def loaded(flags: Sequence[str]) -> Any:
    """Returns the run and the evaluation of flags of `t5lite train`."""
    files = [f.partition("=")[2] for f in flags if f.startswith("--gin_file=")]
    paths = [f.partition("=")[2] for f in flags if f.startswith("--gin_search_paths=")]
    bindings = [f[len("--gin.") :] for f in flags if f.startswith("--gin.")]
    searched = ",".join(paths).split(",") if paths else []
    return configurables.load(files, bindings, searched, "train", "evaluate")

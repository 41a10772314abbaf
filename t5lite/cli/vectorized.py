"""Trains trials of a launch in one program: `t5lite launch --on=local --vectorized=N`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from t5lite.cli.arguments import parse_arguments
from t5lite.cli.eval import evaluation_of
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.run_files import keep_vocabulary, run_config
from t5lite.cli.train import load_run
from t5lite.core.errors import Unavailable, UserError
from t5lite.core.run_directory import RESULT
from t5lite.inference.evaluate import Evaluation, Evaluator
from t5lite.launching.launch import LOG, Launch
from t5lite.launching.sweeps.space import Scalar, parse_space
from t5lite.launching.sweeps.study import Study
from t5lite.launching.trial import complete_trial
from t5lite.training.run import Run
from t5lite.training.slot import VectorizedTrial
from t5lite.training.vectorized_loop import train_vectorized


def run_vectorized(
    launch: Launch, study: Study, numbers: Sequence[int], log: Callable[[int, str], None]
) -> dict[int, str]:
    """Trains trials, `launch.vectorized` at a time, and returns the outcome of each by number.

    Args:
        log: called with the number of a trial and "started", or its outcome.

    Raises:
        UserError: if trials differ in more than numbers.
        Preempted: if SIGTERM asked to stop, after all trials are saved.
    """
    quiet_libraries()
    outcome_of: dict[int, str] = {}
    started: dict[str, Any] = {}
    evaluations: dict[str, Evaluator] = {}

    def trials() -> Iterator[VectorizedTrial]:
        for number in numbers:
            trial = study.take(number)
            if trial is None:
                continue
            # The process that trained it may have been killed before it reported the result.
            if (launch.model_dir(number) / RESULT).exists():
                outcome_of[number] = complete_trial(launch, study, number)
                log(number, outcome_of[number])
                continue
            arguments = launch.arguments(number, trial.params)
            run, evaluation = load_trial(arguments[1:])
            config_text = run_config(run.task.vocabulary)
            launch.model_dir(number).mkdir(parents=True, exist_ok=True)
            keep_vocabulary(run.task.vocabulary, launch.model_dir(number))
            started[run.model_dir] = trial, evaluation
            log(number, "started")
            yield VectorizedTrial(
                run=run,
                config_text=config_text,
                command=["t5lite", *arguments],
            )

    def evaluate(run: Run) -> Evaluator:
        evaluation = started[run.model_dir][1]
        # Trials with equal evaluations share their programs.
        key = repr((run.evaluation_loss, run.eval_split, evaluation))
        if key not in evaluations:
            evaluations[key] = evaluation_of(run, evaluation, mesh)[1]
        return evaluations[key]

    def on_scores(run: Run, step: int, scores: Mapping[str, float]) -> bool:
        trial = started[run.model_dir][0]
        recorded = launch.scores(trial.number)
        if not (launch.prune and recorded and step):
            return False
        return bool(study.report(trial.number, *recorded[-1]))

    def on_end(run: Run, outcome: str | UserError) -> None:
        number = started[run.model_dir][0].number
        if isinstance(outcome, UserError):
            with (launch.model_dir(number) / LOG).open("a") as file:
                file.write(f"t5lite: {outcome}\n")
        if outcome == "finished":
            outcome_of[number] = complete_trial(launch, study, number)
        elif isinstance(outcome, Unavailable):
            outcome_of[number] = "unavailable"
        else:
            outcome_of[number] = "pruned" if outcome == "pruned" else "failed"
            study.tell(number, outcome_of[number])
        log(number, outcome_of[number])

    runs = [
        load_trial(launch.arguments(0, row)[1:])[0]
        for row in extreme_settings(launch.space, launch.listed)
    ]
    mesh = runs[0].mesh.make()
    train_vectorized(
        trials(),
        min(launch.vectorized or 1, len(numbers)),
        mesh,
        evaluate=evaluate,
        # Of the runs, because any binding may set it.
        dropout=any(run.model.config.dropout_rate > 0 for run in runs),
        watchdog=runs[0].watchdog,
        on_scores=on_scores,
        on_end=on_end,
    )
    return outcome_of


def extreme_settings(
    texts: Mapping[str, str], listed: Sequence[Mapping[str, Scalar]]
) -> list[dict[str, Scalar]]:
    """Returns settings at the ends of all ranges; a run that is valid there is valid in between."""
    if listed:
        return [dict(row) for row in listed]
    space = parse_space(texts)
    first: dict[str, Scalar] = {name: values.ends()[0] for name, values in space.items()}
    others = [{**first, name: end} for name, values in space.items() for end in values.ends()[1:]]
    return [first, *others]


def load_trial(flags: Sequence[str]) -> tuple[Run, Evaluation]:
    """Returns the run and the evaluation that flags of `t5lite train` describe."""
    values, _, bindings = parse_arguments("train", flags)
    return load_run(values, bindings)

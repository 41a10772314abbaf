"""`t5lite launch`."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, check_choice
from t5lite.core.import_path import add_own_modules
from t5lite.core.run_directory import RESTART_EXIT, UNAVAILABLE_EXIT

try:
    from t5lite.cli.columns import columns_text, terminal_width
    from t5lite.cli.launch_progress import LaunchProgress
    from t5lite.cli.new_launch import check_unchanged, new_launch
    from t5lite.cli.paths import user_path
    from t5lite.launching.engines.engine import Engine, Submission
    from t5lite.launching.engines.table import engine_of
    from t5lite.launching.launch import LOG, Launch
    from t5lite.launching.launch_files import SPEC, check_launch_folder, read_launch, save_launch
    from t5lite.launching.launcher_lock import hold_launch
    from t5lite.launching.open_study import open_study
    from t5lite.launching.plan import plan_lines
    from t5lite.launching.status import TrialStatus, status_document, trial_statuses
    from t5lite.launching.stopping import until_stopped
    from t5lite.launching.sweeps.study import Study
except ModuleNotFoundError as missing:
    raise UserError(f"launch needs {missing.name}; pip install 't5lite[sweep]'") from missing

# The flags that each action reads, besides --dir. `trial` is for the jobs of schedulers only.
LAUNCH_ACTIONS = {
    "status": ("json",),
    "results": ("json",),
    "logs": ("trial",),
    "resume": ("parallel",),
    "cancel": (),
    "trial": ("trial",),
}
# Flags that only actions read.
_ACTION_ONLY = ("json", "trial")
LOG_LINES = 40


def launch_command(flags: Any, words: Sequence[str], command: Sequence[str]) -> None:
    """Starts a launch, or acts on an existing one.

    Args:
        words: nothing to start one, else an action and a name.
        command: the words after `--`.

    Raises:
        UserError: for an unknown action or launch, a flag that is not read, or a launch that could
            not run.
    """
    if not words:
        _check_flags(flags, None)
        _start(flags, command)
        return
    check_choice("launch", words[0], LAUNCH_ACTIONS)
    if len(words) != 2 or command:
        got = " ".join([*words[1:], *(["--", *command] if command else [])])
        raise UserError(f"launch {words[0]} takes one NAME, got {got or 'none'}")
    _check_flags(flags, words[0])
    launch = read_launch(user_path("--dir", flags.dir).absolute() / words[1])
    # Engines from outside the package are found beside the run files.
    add_own_modules(launch.working_dir)
    _act(flags, words[0], launch)


def _check_flags(flags: Any, action: str | None) -> None:
    """Raises a UserError for the first flag that an action, or a new launch, does not read."""
    given = sorted({flags[name].name for name in flags if flags[name].present})
    if action is None:
        unread = [name for name in given if name in _ACTION_ONLY]
        if unread:
            takers = [each for each, names in LAUNCH_ACTIONS.items() if unread[0] in names]
            raise UserError(
                f"--{unread[0]} is for launch {' and '.join(takers[:2])}, got a new launch"
            )
        return
    known = ("dir", *LAUNCH_ACTIONS[action])
    unread = [name for name in given if name not in known]
    if unread:
        raise UserError(
            f"launch {action} takes {' and '.join(f'--{name}' for name in known)}, got "
            f"--{unread[0]}; the launch keeps the other flags that it was started with"
        )


def _start(flags: Any, command: Sequence[str]) -> None:
    launch = new_launch(flags, command)
    engine = engine_of(launch)
    numbers = range(launch.num_trials)
    remark = engine.check(numbers)
    lines = plan_lines(launch)
    if flags.dry_run:
        for line in lines:
            print(f"# {line}")
        print(engine.render(numbers))
        if remark:
            print(f"# {remark}")
        return
    folder = pathlib.Path(launch.folder)
    check_launch_folder(folder)
    with hold_launch(folder):
        _check_moved(launch)
        save_launch(launch)
        for line in lines:
            print(line, flush=True)
        _continue(launch, engine)


def _check_moved(launch: Launch) -> None:
    """Raises a UserError if an engine still has trials that were requested differently."""
    folder = pathlib.Path(launch.folder)
    if not (folder / SPEC).exists():
        return
    before = read_launch(folder)
    names = sorted(before.resources.keys() | launch.resources.keys())
    changed = [
        f"--{name}"
        for name in names
        if _plain(before.resources.get(name)) != _plain(launch.resources.get(name))
    ]
    if before.engine != launch.engine:
        changed.insert(0, "--on")
    if changed and engine_of(before).active():
        raise UserError(
            f"{launch.name} is active with --on={before.engine} and another {', '.join(changed)}; "
            f"run t5lite launch cancel {launch.reference} first"
        )


def _plain(value: Any) -> Any:
    """Returns a resource as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _continue(launch: Launch, engine: Engine) -> None:
    """Runs or submits the trials that have not ended yet."""
    study = open_study(launch)
    engine.reconcile(study)
    trials = study.trials()
    numbers = [
        number
        for number in range(launch.num_trials)
        if number >= len(trials) or not trials[number].state.is_finished()
    ]
    # An earlier launcher may have been killed before it released them.
    engine.release([t.number for t in trials if t.state.is_finished()])
    failed = [str(t.number) for t in trials if t.state.name == "FAIL"]
    if not numbers:
        count = launch.num_trials
        ended = "its trial has ended" if count == 1 else f"all {count} trials have ended"
        print(f"{launch.name}: {ended}")
        _exit_if_failed(failed)
        return
    # Interrupted trials first.
    numbers.sort(key=lambda n: (n >= len(trials) or trials[n].state.name != "RUNNING", n))
    submission = _submit(launch, engine, study, numbers)
    if submission.message:
        print(submission.message)
    if submission.states is not None:
        _report_end(launch, study, numbers, submission.states, failed)


def _submit(launch: Launch, engine: Engine, study: Study, numbers: Sequence[int]) -> Submission:
    """Submits trials and prints how each ends that this process watches."""

    def print_state(number: int, state: str) -> None:
        value = study.value_of(number) if state != "started" else None
        shown = "" if value is None or launch.command != "train" else f"  {value:.6g}"
        print(f"trial {number}: {state}{shown}", flush=True)

    if launch.vectorized:
        from t5lite.cli.vectorized import run_vectorized

        return Submission(states=run_vectorized(launch, study, numbers, print_state))
    with LaunchProgress(launch) as progress:

        def on_state(number: int, state: str) -> None:
            progress.on_state(number, state)
            print_state(number, state)

        return engine.submit(study, numbers, on_state)


def _report_end(
    launch: Launch,
    study: Study,
    numbers: Sequence[int],
    states: Mapping[int, str],
    failed: Sequence[str],
) -> None:
    """Prints the best trial and what remains to be done, and sets the exit status."""
    best = study.best()
    if best is not None and launch.is_sweep:
        params = "  ".join(f"{name}={value}" for name, value in best.params.items())
        print(f"best: trial {best.number}, {launch.objective} {best.value:.6g}, {params}")
    resume = f"t5lite launch resume {launch.reference}"
    blocked = [str(number) for number, state in states.items() if state == "unavailable"]
    if blocked:
        print(
            f"t5lite: a resource is missing for trial {', '.join(blocked)}; see the logs, then "
            f"resume with: {resume}",
            file=sys.stderr,
        )
        sys.exit(UNAVAILABLE_EXIT)
    if len(states) < len(numbers) or "stopped" in states.values():
        print(f"t5lite: stopped; resume with: {resume}", file=sys.stderr)
        sys.exit(RESTART_EXIT)
    _exit_if_failed([*failed, *(str(n) for n, state in states.items() if state == "failed")])


def _exit_if_failed(failed: Sequence[str]) -> None:
    if failed:
        print(f"t5lite: failed: {', '.join(failed)}; see the logs", file=sys.stderr)
        sys.exit(1)


def _act(flags: Any, action: str, launch: Launch) -> None:
    if action == "logs":
        _print_logs(flags, launch)
        return
    if action == "resume" and flags.parallel:
        launch = dataclasses.replace(launch, parallel=flags.parallel)
    engine = engine_of(launch)
    if action == "cancel":
        print(f"{launch.name}: {engine.cancel()}")
    elif action == "resume":
        os.chdir(launch.working_dir)
        with hold_launch(pathlib.Path(launch.folder)):
            if not engine.packs_files:
                check_unchanged(launch)
            _continue(launch, engine)
    elif action == "trial":
        _run_task(flags, launch, engine)
    else:
        study = open_study(launch)
        engine.reconcile(study)
        trials = trial_statuses(launch, study, engine)
        if flags.json:
            print(status_document(launch, study, trials))
        else:
            _print_trials(launch, study, trials, sort=action == "results")


def _run_task(flags: Any, launch: Launch, engine: Engine) -> None:
    """Runs one trial inside a job of a scheduler."""
    if flags.trial is None or flags.trial >= launch.num_trials:
        raise UserError(f"launch trial needs --trial under {launch.num_trials}, got {flags.trial}")
    study = open_study(launch)
    state = until_stopped(lambda stopping: engine.run_task(study, flags.trial, stopping))
    codes = {"failed": 1, "stopped": RESTART_EXIT, "unavailable": UNAVAILABLE_EXIT}
    sys.exit(codes.get(state, 0))


def _print_logs(flags: Any, launch: Launch) -> None:
    numbers = range(launch.num_trials) if flags.trial is None else [flags.trial]
    if numbers[-1] >= launch.num_trials:
        raise UserError(f"--trial must be under {launch.num_trials}, got {flags.trial}")
    for number in numbers:
        path = launch.model_dir(number) / LOG
        if not path.exists():
            print(f"trial {number}: not started")
            continue
        lines = path.read_text(errors="replace").splitlines()
        shown = lines if flags.trial is not None else lines[-3:]
        print(f"==> {path}")
        print("\n".join(shown[-LOG_LINES:]))


def _print_trials(
    launch: Launch, study: Study, trials: Sequence[TrialStatus], *, sort: bool
) -> None:
    """Prints a table of the trials, from best to worst if `sort`."""
    best = study.best() if launch.is_sweep else None
    if sort:
        worst = float("inf")
        sign = -1 if launch.maximize else 1
        trials = sorted(trials, key=lambda t: worst if t.value is None else sign * t.value)
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    of = "" if launch.last_step is None else f"/{launch.last_step}"
    counts = ("preempted", "failed", "rejected")
    titles = ["trial", "state", "step", launch.objective, *names, *counts]
    rows = [
        [
            f"{trial.trial}{'*' if best is not None and trial.trial == best.number else ''}",
            trial.state,
            f"{trial.step}{of}",
            "" if trial.value is None else f"{trial.value:.6g}",
            *(str(trial.params.get(name, "")) for name in names),
            *(str(getattr(trial, count)) for count in counts),
        ]
        for trial in trials
    ]
    width = terminal_width()
    print(columns_text(titles, rows, width=width, left=["state"], gin_names=names))
    if best is not None:
        better = "highest" if launch.maximize else "lowest"
        print(f"* best: the {better} {launch.objective}")

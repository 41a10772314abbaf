"""`t5lite launch`."""

import dataclasses
import os
import pathlib
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import rich.console
import rich.table

from t5lite.core.errors import UserError, check_choice
from t5lite.core.run_directory import RESTART_EXIT, UNAVAILABLE_EXIT

try:
    from t5lite.cli.new_launch import check_unchanged, new_launch
    from t5lite.launching import status
    from t5lite.launching.engines import local, slurm
    from t5lite.launching.engines.engine import (
        give_back,
        module_of,
        reads_files_here,
        reconcile,
        watched,
    )
    from t5lite.launching.launch import LOG, SPEC, Launch, check_folder, read, save
    from t5lite.launching.sweeps.study import Study
except ModuleNotFoundError as missing:
    raise UserError(f"launch needs {missing.name}; pip install 't5lite[sweep]'") from missing

ACTIONS = ("status", "results", "logs", "resume", "cancel", "trial")
LOG_LINES = 40


def run(flags: Any, words: Sequence[str], command: Sequence[str]) -> None:
    """Starts a launch, or does something about one.

    Args:
        words: nothing to start one, else an action and a name.
        command: what stands behind `--`.
    """
    if not words:
        _start(flags, command)
        return
    check_choice("launch", words[0], ACTIONS)
    if len(words) != 2 or command:
        raise UserError(f"t5lite launch {words[0]} takes a NAME and no more")
    _act(flags, words[0], pathlib.Path(flags.dir).absolute() / words[1])


def _start(flags: Any, command: Sequence[str]) -> None:
    launch = new_launch(flags, command)
    numbers = range(launch.num_trials)
    said = module_of(launch).check(launch, numbers)
    if flags.dry_run:
        print(module_of(launch).text(launch, numbers))
        if said:
            print(f"# {said}")
        return
    folder = pathlib.Path(launch.folder)
    check_folder(folder)
    with local.alone(folder):
        _leave_engine(launch)
        save(launch)
        _go_on(launch)


def _leave_engine(launch: Launch) -> None:
    """Raises a UserError where another engine still has trials of the launch."""
    folder = pathlib.Path(launch.folder)
    if (folder / SPEC).exists():
        before = read(folder)
        places = ("zone", "project", "slices", "options")
        moved = before.engine != launch.engine or any(
            before.resources.get(name) != launch.resources.get(name) for name in places
        )
        if moved and module_of(before).active(before):
            raise UserError(
                f"{launch.name} goes on with --on={before.engine} and other options: t5lite launch "
                f"cancel {launch.reference} first"
            )


def _go_on(launch: Launch) -> None:
    """Runs or submits what has not ended yet."""
    study = launch.study()
    reconcile(launch, study)
    trials = study.trials()
    numbers = [
        number
        for number in range(launch.num_trials)
        if number >= len(trials) or not trials[number].state.is_finished()
    ]
    # Whoever watched them may have been killed before it could.
    give_back(launch, [t.number for t in trials if t.state.is_finished()])
    failed = [str(t.number) for t in trials if t.state.name == "FAIL"]
    if not numbers:
        print(f"{launch.name}: all {launch.num_trials} trials have ended")
        _tell_failed(failed)
        return
    engine = watched(launch)
    if engine is None:
        print(module_of(launch).submit(launch, study, numbers))
        return
    # Those that were begun go first.
    numbers.sort(key=lambda n: (n >= len(trials) or trials[n].state.name != "RUNNING", n))

    def tell(number: int, state: str) -> None:
        ended = {t.number: t for t in study.trials()}[number] if state != "started" else None
        value = "" if ended is None or ended.value is None else f"  {ended.value:.6g}"
        value = value if launch.command == "train" else ""
        print(f"trial {number}: {state}{value}", flush=True)

    if launch.vectorized:
        from t5lite.cli.vectorized import run_vectorized

        ended = run_vectorized(launch, study, numbers, tell)
    else:
        ended = _until_stopped(
            lambda stopping: local.run_here(launch, study, numbers, engine, tell, stopping)
        )
    best = study.best()
    if best is not None and launch.is_sweep:
        params = "  ".join(f"{name}={value}" for name, value in best.params.items())
        print(f"best: trial {best.number}, {launch.objective} {best.value:.6g}, {params}")
    again = f"t5lite launch resume {launch.reference}"
    lacking = [str(number) for number, state in ended.items() if state == "unavailable"]
    if lacking:
        print(
            f"t5lite: trial {', '.join(lacking)} lacks something; see the logs, mend it and go on "
            f"with: {again}",
            file=sys.stderr,
        )
        sys.exit(UNAVAILABLE_EXIT)
    if len(ended) < len(numbers) or "stopped" in ended.values():
        print(f"t5lite: stopped; go on with: {again}", file=sys.stderr)
        sys.exit(RESTART_EXIT)
    _tell_failed([*failed, *(str(n) for n, state in ended.items() if state == "failed")])


def _tell_failed(failed: Sequence[str]) -> None:
    if failed:
        print(f"t5lite: failed: {', '.join(failed)}; see the logs", file=sys.stderr)
        sys.exit(1)


def _until_stopped(work: Callable[[threading.Event], dict[int, str]]) -> dict[int, str]:
    """Does work that SIGTERM and Ctrl-C ask to stop."""
    stopping = threading.Event()
    # A handler that set the event could wait for itself: for its lock, when interrupted by another
    # signal or when the work was just looking. Putting into this queue takes none.
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def listen() -> None:
        signals.get()
        stopping.set()

    threading.Thread(target=listen, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: signals.put(signum))
    return work(stopping)


def _act(flags: Any, action: str, folder: pathlib.Path) -> None:
    launch = read(folder)
    if action == "resume":
        if flags.parallel:
            launch = dataclasses.replace(launch, parallel=flags.parallel)
        os.chdir(launch.working_dir)
        sys.path.append(launch.working_dir)
        with local.alone(folder):
            if reads_files_here(launch):
                check_unchanged(launch)
            _go_on(launch)
    elif action == "trial":
        if flags.trial is None or flags.trial >= launch.num_trials:
            raise UserError(f"launch trial needs --trial under {launch.num_trials}")
        study = launch.study()
        states: list[str] = []

        def work(stopping: threading.Event) -> dict[int, str]:
            states.append(slurm.run_task(launch, study, flags.trial, stopping))
            return {}

        _until_stopped(work)
        codes = {"failed": 1, "stopped": RESTART_EXIT, "unavailable": UNAVAILABLE_EXIT}
        sys.exit(codes.get(states[0], 0))
    elif action == "cancel":
        print(f"{launch.name}: {module_of(launch).cancel(launch)}")
    elif action == "logs":
        _logs(flags, launch)
    else:
        study = launch.study()
        reconcile(launch, study)
        rows = status.rows(launch, study)
        if flags.json:
            print(status.as_json(launch, study, rows))
        else:
            _table(launch, study, rows, results=action == "results")


def _logs(flags: Any, launch: Launch) -> None:
    numbers = range(launch.num_trials) if flags.trial is None else [flags.trial]
    for number in numbers:
        path = launch.model_dir(number) / LOG
        if not path.exists():
            print(f"trial {number}: not started")
            continue
        lines = path.read_text(errors="replace").splitlines()
        shown = lines if flags.trial is not None else lines[-3:]
        print(f"==> {path}")
        print("\n".join(shown[-LOG_LINES:]))


def _table(launch: Launch, study: Study, rows: Sequence[status.Row], *, results: bool) -> None:
    """Prints a table; results go from best to worst."""
    best = study.best() if launch.is_sweep else None
    if results:
        worst = float("inf")
        sign = -1 if launch.maximize else 1
        rows = sorted(rows, key=lambda r: worst if r.value is None else sign * r.value)
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    table = rich.table.Table(box=None, pad_edge=False)
    for title in ("trial", "state", "step", launch.objective, *names, "preempted", "failed"):
        table.add_column(title, justify="left" if title == "state" else "right")
    for row in rows:
        mark = "*" if best is not None and row.trial == best.number else ""
        value = "" if row.value is None else f"{row.value:.6g}"
        params = [str(row.params.get(name, "")) for name in names]
        numbers = (str(row.preempted), str(row.failed))
        table.add_row(f"{row.trial}{mark}", row.state, str(row.step), value, *params, *numbers)
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 1000
    console.print(table)
    if best is not None:
        print("* the best")

"""`t5lite launch`."""

import dataclasses
import hashlib
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import rich.console
import rich.table

from t5lite.cli.quiet import quiet_libraries
from t5lite.core.errors import UserError, check_choice
from t5lite.core.run_directory import RESTART_EXIT, UNAVAILABLE_EXIT
from t5lite.launching.space import Range, Scalar, bindings, parse_space

try:
    from t5lite.launching import gke, local, slurm, status, tpu
    from t5lite.launching.engines import MODULES, module_of, watched
    from t5lite.launching.launch import LOG, SPEC, Launch, check_folder, read, save
    from t5lite.launching.study import Study
except ModuleNotFoundError as missing:
    raise UserError(f"launch needs {missing.name}; pip install 't5lite[sweep]'") from missing

ACTIONS = ("status", "results", "logs", "resume", "cancel", "trial")
# What is asked of an engine, and of which.
RESOURCES = {
    "nodes": ("slurm",),
    "processes": ("local", "slurm"),
    "gpus": ("slurm",),
    "time_limit": ("slurm",),
    "options": ("slurm", "tpu", "gke"),
    "zone": ("tpu",),
    "project": ("tpu",),
    "spot": ("tpu", "gke"),
    "reserved": ("tpu",),
    "slices": ("tpu", "gke"),
    "runtime_version": ("tpu",),
    "ssh_options": ("tpu",),
    "setup": ("tpu", "gke"),
    "wheel": ("tpu", "gke"),
    "image": ("gke",),
    "claim": ("gke",),
    "queue": ("gke",),
}
LOG_LINES = 40
# What shells, Slurm and file systems all take as it is.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    engine = (flags.on or "").partition(":")[0]
    if not flags.on:
        raise UserError(
            "launch needs --on=local, slurm, tpu:SLICE or gke:SLICE, or an action such as status "
            "NAME"
        )
    check_choice("--on", engine, MODULES)
    for resource, engines in RESOURCES.items():
        if getattr(flags, resource) and engine not in engines:
            raise UserError(f"--{resource} is for --on={' or '.join(engines)}, got {flags.on}")
    if not flags.name:
        raise UserError("launch needs --name: results go to the folder of that name in --dir")
    if not NAME.fullmatch(flags.name):
        raise UserError(
            "--name must be letters, digits and . _ -, beginning with one of the first two, got "
            f"{flags.name!r}"
        )
    words = _joined(command)
    if not words:
        raise UserError("launch needs the flags of t5lite train behind --, as in -- --gin_file=F")
    name = words.pop(0) if not words[0].startswith("-") else "train"
    options = _options(flags, name, words)
    launch = Launch(
        **options,
        **(_checked(flags, words, options) if name == "train" else {}),
    )
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


def _joined(command: Sequence[str]) -> list[str]:
    """Writes `--gin_file F` as `--gin_file=F`."""
    words: list[str] = []
    for word in command:
        if words and words[-1] in ("--gin_file", "--gin_search_paths"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


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


def _options(flags: Any, command: str, words: Sequence[str]) -> dict[str, Any]:
    """Returns what flags alone say of a launch."""
    for word in words:
        if word.startswith("--gin.MODEL_DIR="):
            raise UserError(
                "a launch gives every trial a MODEL_DIR of its own in --dir/--name; leave out "
                "--gin.MODEL_DIR"
            )
    file = _sweep_file(flags)

    def chosen(name: str) -> Any:
        own = getattr(flags, name)
        return getattr(file, name, None) if own is None else own

    higher, lower = (flags.maximize, flags.minimize)
    if not (higher or lower) and file is not None:
        higher, lower = file.maximize, file.minimize
    if higher and lower:
        raise UserError("--minimize and --maximize cannot both be there")
    pairs = [text.partition("=") for text in flags.sweep]
    for (name, equals, _), text in zip(pairs, flags.sweep, strict=True):
        if not (name.strip() and equals):
            raise UserError(f"--sweep must be NAME=VALUES, got {text!r}")
    space = {name.strip(): values.strip() for name, _, values in pairs}
    if len(space) < len(pairs):
        raise UserError("--sweep names something twice")
    if space and file is not None:
        raise UserError("--sweep and --sweep_file cannot both be there")
    listed = [] if file is None else [dict(row) for row in file.listed or ()]
    space = space if file is None else file.space
    ranges = parse_space(space)
    drawn = any(isinstance(v, Range) and v.points is None for v in ranges.values())
    objective = higher or lower
    return {
        "folder": str((pathlib.Path(flags.dir) / flags.name).absolute()),
        "command": command,
        "flags": list(words),
        "engine": flags.on,
        "working_dir": os.getcwd(),
        "parallel": flags.parallel,
        "vectorized": flags.vectorized,
        "max_failures": flags.max_failures,
        "resources": {name: value for name in RESOURCES if (value := getattr(flags, name))},
        "space": space,
        "listed": listed,
        "method": chosen("method") or ("quasi" if drawn else "grid"),
        "trials": chosen("trials"),
        "prune": chosen("prune"),
        **({"objective": objective} if objective else {}),
        "maximize": bool(higher),
        "seed": chosen("seed") or 0,
    }


def _sweep_file(flags: Any) -> Any:
    """Returns what `--sweep_file` says, None without one."""
    if not flags.sweep_file:
        return None
    from t5lite import configurables

    (sweep,) = configurables.load([flags.sweep_file], [], [], "sweep")
    return sweep


def _checked(flags: Any, words: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """Builds the run as every end of every range makes it, and returns when it is evaluated."""
    for word in words:
        if not word.startswith(("--gin_file=", "--gin_search_paths=", "--gin.")):
            raise UserError(f"flags of train are --gin_file=F and --gin.NAME=VALUE, got {word!r}")
    if not any(word.startswith("--gin_file=") for word in words):
        raise UserError("launch needs a run file behind --, as in -- --gin_file=F")
    # Late, with JAX behind it: what only looks at a launch does without.
    from t5lite.cli.vectorized import ends
    from t5lite.training.population import check_alike

    quiet_libraries()
    sys.path.append(os.getcwd())

    rows = ends(options["space"], options["listed"])
    digest, run = _build(words, rows[0])
    others = [_build(words, row)[1] for row in rows[1:]]
    if flags.vectorized:
        dropout = any(r.model.config.dropout_rate > 0 for r in (run, *others))
        for other in others:
            check_alike(run, other, dropout=dropout)
    return {
        "first_score": run.eval_every_steps,
        "last_step": run.total_steps,
        "config": digest,
    }


def _build(words: Sequence[str], row: dict[str, Scalar]) -> tuple[str, Any]:
    """Returns a digest of all that gin binds in a trial, and its run."""
    from t5lite import configurables
    from t5lite.cli.vectorized import loaded

    run, _ = loaded([*words, *bindings(row), "--gin.MODEL_DIR=any"])
    return hashlib.sha256(configurables.resolved_text().encode()).hexdigest()[:16], run


def _check_unchanged(launch: Launch) -> None:
    """Raises a UserError where trials would be others than those of the launch's beginning."""
    from t5lite.cli.vectorized import ends

    quiet_libraries()
    if (
        launch.config
        and _build(launch.flags, ends(launch.space, launch.listed)[0])[0] != launch.config
    ):
        raise UserError(
            f"the run files of {launch.name} have changed since it was begun: its trials could not "
            "be compared; put them back, or launch under another --name"
        )


def _go_on(launch: Launch) -> None:
    """Runs or submits what has not ended yet."""
    study = launch.study()
    if module_of(launch) is gke:
        gke.reconcile(launch, study)
    trials = study.trials()
    numbers = [
        number
        for number in range(launch.num_trials)
        if number >= len(trials) or not trials[number].state.is_finished()
    ]
    if module_of(launch) is tpu:
        # Whoever watched them may have been killed before it could.
        tpu.give_back(launch, [t.number for t in trials if t.state.is_finished()])
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
    lacking = [str(number) for number, state in ended.items() if state == "lacking"]
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
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: stopping.set())
    return work(stopping)


def _act(flags: Any, action: str, folder: pathlib.Path) -> None:
    launch = read(folder)
    if action == "resume":
        if flags.parallel:
            launch = dataclasses.replace(launch, parallel=flags.parallel)
        os.chdir(launch.working_dir)
        sys.path.append(launch.working_dir)
        with local.alone(folder):
            # Slices and pods have the code of the beginning.
            if module_of(launch) in (local, slurm):
                _check_unchanged(launch)
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
        codes = {"failed": 1, "stopped": RESTART_EXIT, "lacking": UNAVAILABLE_EXIT}
        sys.exit(codes.get(states[0], 0))
    elif action == "cancel":
        print(f"{launch.name}: {module_of(launch).cancel(launch)}")
    elif action == "logs":
        _logs(flags, launch)
    else:
        study = launch.study()
        if module_of(launch) is gke:
            gke.reconcile(launch, study)
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

"""From the flags of `t5lite launch` to a launch, checked before anything starts."""

import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from t5lite.cli.quiet import quiet_libraries
from t5lite.core.errors import UserError, check_choice
from t5lite.launching.engines.engine import MODULES
from t5lite.launching.launch import Launch
from t5lite.launching.sweeps.space import Range, Scalar, bindings, parse_space

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
# What shells, Slurm and file systems all take as it is.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def new_launch(flags: Any, command: Sequence[str]) -> Launch:
    """Returns the launch that flags ask for.

    Args:
        command: what stands behind `--`.

    Raises:
        UserError: for a flag that does not fit, or a trial that could not be run.
    """
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
    return Launch(
        **options,
        **(_checked(flags, words, options) if name == "train" else {}),
    )


def _joined(command: Sequence[str]) -> list[str]:
    """Writes `--gin_file F` as `--gin_file=F`."""
    words: list[str] = []
    for word in command:
        if words and words[-1] in ("--gin_file", "--gin_search_paths"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


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


def check_unchanged(launch: Launch) -> None:
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

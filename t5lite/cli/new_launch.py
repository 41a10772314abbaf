"""From the flags of `t5lite launch` to a launch, validated before anything starts."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from t5lite.cli.arguments import parse_arguments
from t5lite.cli.launch_flags import given_resources
from t5lite.cli.paths import user_path
from t5lite.cli.quiet import quiet_libraries
from t5lite.core.errors import UserError
from t5lite.launching.engines.script_text import check_launch_name
from t5lite.launching.engines.table import engine_class, engine_of
from t5lite.launching.launch import Launch
from t5lite.launching.sweeps.settings import SAMPLED_METHODS
from t5lite.launching.sweeps.space import Range, Scalar, gin_flags, parse_space


def new_launch(flags: Any, command: Sequence[str]) -> Launch:
    """Returns the launch that flags request.

    Args:
        command: the words after `--`.

    Raises:
        UserError: for a flag that does not fit, or a trial that could not run.
    """
    if not flags.on:
        raise UserError(
            "launch needs --on=local, slurm, tpu:SLICE or gke:SLICE, or an action such as status "
            "NAME"
        )
    engine_class(flags.on)
    if not flags.name:
        raise UserError("launch needs --name; results go to the folder of that name in --dir")
    check_launch_name(flags.name)
    words = _joined(command)
    if not words:
        raise UserError("launch needs the flags of t5lite train after --, as in -- --gin_file=F")
    name = words.pop(0) if not words[0].startswith("-") else "train"
    options = _options(flags, name, words)
    if name != "train":
        launch = Launch(**options)
        if others := parse_arguments(name, words).words:
            raise UserError(f"{name} takes flags only, got {others[0]!r}")
        return launch
    # Rejects what the engine does not take, before the run is built.
    engine_of(Launch(**{**options, "prune": None}))
    return Launch(**options, **_run_facts(flags, words, options))


def _joined(command: Sequence[str]) -> list[str]:
    """Returns words in which `--gin_file F` is `--gin_file=F`."""
    words: list[str] = []
    for word in command:
        if words and words[-1] in ("--gin_file", "--gin_search_paths"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _options(flags: Any, command: str, words: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of the launch that flags alone determine."""
    for word in words:
        if command == "train" and word.startswith("--gin.MODEL_DIR="):
            raise UserError(
                "a launch gives every trial its own MODEL_DIR in --dir/--name; leave out "
                "--gin.MODEL_DIR"
            )
    file = _sweep_file(flags)

    def chosen(name: str) -> Any:
        own = getattr(flags, name)
        return getattr(file, name, None) if own is None else own

    higher = flags.maximize
    lower = flags.minimize
    if not (higher or lower) and file is not None:
        higher = file.maximize
        lower = file.minimize
    if higher and lower:
        raise UserError("--minimize and --maximize are mutually exclusive")
    space = _space_of(flags.sweep)
    if space and file is not None:
        raise UserError("--sweep and --sweep_file are mutually exclusive")
    space = space if file is None else file.space
    ranges = parse_space(space)
    sampled = any(isinstance(v, Range) and v.points is None for v in ranges.values())
    objective = higher or lower
    listed = [] if file is None else [dict(row) for row in file.listed or ()]
    _check_listed(chosen("method"), chosen("trials"), num_listed=len(listed))
    method = chosen("method") or ("quasi" if sampled else "grid")
    if chosen("seed") is not None and method not in SAMPLED_METHODS:
        raise UserError(
            f"--seed is for --method={' or '.join(SAMPLED_METHODS)}, got {method}; the seed of a "
            "run is bound after --, as in -- --gin.SEED=1"
        )
    return {
        "folder": str((user_path("--dir", flags.dir) / flags.name).absolute()),
        "command": command,
        "flags": list(words),
        "engine": flags.on,
        "working_dir": os.getcwd(),
        "parallel": flags.parallel,
        "vectorized": flags.vectorized,
        "max_failures": flags.max_failures,
        "resources": given_resources(flags),
        "space": space,
        "listed": listed,
        "method": method,
        "trials": chosen("trials"),
        "prune": chosen("prune"),
        **({"objective": objective} if objective else {}),
        "maximize": bool(higher),
        "seed": chosen("seed") or 0,
        "allow_repeats": flags.allow_repeats,
    }


def _check_listed(method: str | None, trials: int | None, *, num_listed: int) -> None:
    """Raises a UserError for a choice that does not apply to listed trials."""
    if num_listed and method not in (None, "list"):
        raise UserError(f"sweep.listed names the settings, got --method={method}; leave it out")
    if num_listed and trials not in (None, num_listed):
        raise UserError(f"--trials of sweep.listed must be {num_listed}, got {trials}")


def _space_of(sweeps: Sequence[str]) -> dict[str, str]:
    """Returns the search space of `--sweep` flags."""
    space: dict[str, str] = {}
    for text in sweeps:
        name, equals, values = text.partition("=")
        if not (name.strip() and equals):
            raise UserError(f"--sweep must be NAME=VALUES, got {text!r}")
        if name.strip() in space:
            raise UserError(f"--sweep must name each binding once, got {name.strip()} twice")
        space[name.strip()] = values.strip()
    return space


def _sweep_file(flags: Any) -> Any:
    """Returns the sweep of `--sweep_file`; None without the flag."""
    if not flags.sweep_file:
        return None
    from t5lite import configurables

    (sweep,) = configurables.load([flags.sweep_file], [], [], "sweep")
    return sweep


def _run_facts(flags: Any, words: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """Builds the run at both ends of every range, and returns the fields it determines."""
    for word in words:
        if not word.startswith(("--gin_file=", "--gin_search_paths=", "--gin.")):
            raise UserError(f"flags of train are --gin_file=F and --gin.NAME=VALUE, got {word!r}")
    if not any(word.startswith("--gin_file=") for word in words):
        raise UserError("launch needs a run file after --, as in -- --gin_file=F")
    # Imported late, with JAX: status and results do without.
    from t5lite.cli.vectorized import extreme_settings
    from t5lite.training.one_program import check_one_program

    quiet_libraries()
    rows = extreme_settings(options["space"], options["listed"])
    digest, run = _build(words, rows[0])
    others = [_build(words, row)[1] for row in rows[1:]]
    if flags.vectorized:
        dropout = any(r.model.config.dropout_rate > 0 for r in (run, *others))
        for other in others:
            check_one_program(run, other, dropout=dropout)
    return {
        "first_score": run.eval_every_steps,
        "last_step": run.total_steps,
        "config": digest,
    }


def _build(words: Sequence[str], row: dict[str, Scalar]) -> tuple[str, Any]:
    """Returns a digest of everything that gin binds in a trial, and its run."""
    from t5lite import configurables
    from t5lite.cli.vectorized import load_trial

    run, _ = load_trial([*words, *gin_flags(row), "--gin.MODEL_DIR=any"])
    return hashlib.sha256(configurables.resolved_text().encode()).hexdigest()[:16], run


def check_unchanged(launch: Launch) -> None:
    """Raises a UserError if the run files have changed since the launch started."""
    from t5lite.cli.vectorized import extreme_settings

    quiet_libraries()
    if launch.config is None:
        return
    digest, _ = _build(launch.flags, extreme_settings(launch.space, launch.listed)[0])
    if digest != launch.config:
        raise UserError(
            f"the run files of {launch.name} have changed since it started, so its trials would "
            "not be comparable; restore them, or launch under another --name"
        )

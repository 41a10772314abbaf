"""The flags of `t5lite launch`: its own, and those that derive from the resources of engines."""

import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags

from t5lite.cli.command_flag import COMMON_FLAGS, CommandFlag
from t5lite.core.errors import UserError
from t5lite.launching.engines.resources import ResourceField, resource_fields
from t5lite.launching.engines.table import ENGINES, engine_class

SWEEPS = "sweeps"
ACTION_FLAGS = "status, results, logs"


def _flag(name: str, help: str, group: str = COMMON_FLAGS, **options: Any) -> CommandFlag:
    return CommandFlag(name=name, help=help, commands=("launch",), group=group, **options)


_LAUNCH_FLAGS = (
    _flag(
        "on",
        "Engine: local, slurm or slurm:PARTITION, tpu:SLICE such as tpu:v5e-256, gke:SLICE such as "
        "gke:tpu7x-64, or module:Class for an engine of your own.",
    ),
    _flag("name", "Name of the launch; everything it writes is in --dir/NAME."),
    _flag("dir", "Folder of launches.", default="runs"),
    _flag(
        "parallel",
        "Trials at a time; if not given, all of them on Slurm and GKE, else 1.",
        kind=int,
        minimum=1,
    ),
    _flag(
        "max_failures",
        "Restarts of a trial after a crash, not counting those after a preemption.",
        kind=int,
        default=3,
        minimum=0,
    ),
    _flag(
        "dry_run",
        "Validate the launch and print what would be run or submitted.",
        kind=bool,
        default=False,
    ),
    _flag("help", "Print this help.", kind=bool, default=False),
    _flag(
        "sweep",
        "NAME=VALUES: a gin binding and a list, range(3), uniform(0.0, 0.3) or log(1e-4, 1e-2), "
        "with a third number for the points of a grid; may be repeated.",
        SWEEPS,
        kind="multi",
        default=(),
    ),
    _flag(
        "sweep_file",
        "A gin file that binds sweep.values, or sweep.listed for the trials one by one.",
        SWEEPS,
    ),
    _flag(
        "method",
        "How settings are chosen: grid, random, quasi or tpe; if not given, grid if the space has "
        "one, else quasi-random.",
        SWEEPS,
    ),
    _flag("prune", "Stop bad trials early: asha or hyperband.", SWEEPS),
    _flag(
        "minimize",
        "Metric to minimize; cross_entropy_nats_per_token of the evaluation if not given. "
        "SPLIT/NAME is a metric of another split.",
        SWEEPS,
    ),
    _flag("maximize", "Metric to maximize instead.", SWEEPS),
    _flag("trials", "Number of trials, if the method samples them.", SWEEPS, kind=int, minimum=1),
    _flag(
        "vectorized",
        "Number of trials that train in one program in this process; they may differ in numbers "
        "only.",
        SWEEPS,
        kind=int,
        minimum=1,
    ),
    _flag("seed", "Seed of sampled settings; 0 if not given.", SWEEPS, kind=int),
    _flag(
        "allow_repeats",
        "Run sampled or listed settings more than once.",
        SWEEPS,
        kind=bool,
        default=False,
    ),
    _flag(
        "json",
        "status, results: print one JSON document.",
        ACTION_FLAGS,
        kind=bool,
        default=False,
    ),
    _flag("trial", "logs: the trial to print.", ACTION_FLAGS, kind=int, minimum=0),
)


def define_launch_flags(values: flags.FlagValues, engine: type[Any] | None = None) -> None:
    """Defines the flags of `launch`.

    Args:
        engine: an engine from outside the package whose resources become flags too.

    Raises:
        UserError: if a resource of that engine has the name of another flag.
    """
    for flag in _LAUNCH_FLAGS:
        flag.define(values)
    classes = {name: each.resources_type for name, each in ENGINES.items()}
    if engine is not None:
        classes[engine.__name__] = engine.resources_type
    defined: dict[str, ResourceField] = {}
    for owner, resources_type in classes.items():
        for field in resource_fields(resources_type):
            if field.name in defined and defined[field.name].kind is field.kind:
                continue
            if field.name in values:
                raise UserError(
                    f"{owner}: the resource {field.name!r} has the name of another flag of launch"
                )
            defined[field.name] = field
            _resource_flag(field).define(values)


def _resource_flag(field: ResourceField) -> CommandFlag:
    if field.kind is tuple:
        return _flag(field.name, field.help, kind="multi", default=())
    if field.kind is int:
        return _flag(field.name, field.help, kind=int, minimum=field.minimum)
    return _flag(
        field.name, field.help, kind=field.kind, default=False if field.kind is bool else None
    )


def outside_engine(arguments: Sequence[str]) -> type[Any] | None:
    """Returns the class of an engine from outside the package that `--on=module:Class` names.

    Raises:
        UserError: if it cannot be imported.
    """
    for index, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if flag not in ("--on", "-on"):
            continue
        on = value if equals else "".join(arguments[index + 1 : index + 2])
        if ":" in on and on.partition(":")[0] not in ENGINES:
            return engine_class(on)[0]
    return None


def launch_flag_lines(engine: type[Any] | None = None, *, width: int | None = None) -> list[str]:
    """Returns the flags of `launch` for `--help`, those of an engine under the engine.

    Args:
        engine: as in `define_launch_flags`.
        width: columns of the terminal; None for any width.
    """
    groups: dict[str, dict[str, str]] = {}
    for flag in _LAUNCH_FLAGS:
        groups.setdefault(f"{flag.group}:", {})[flag.name] = flag.full_help
    classes = {f"--on={name}:": each for name, each in ENGINES.items()}
    if engine is not None:
        classes[f"--on={engine.__module__}:{engine.__name__}:"] = engine
    for title, each in classes.items():
        groups[title] = {field.name: field.help for field in resource_fields(each.resources_type)}
    lines = []
    for title, texts in groups.items():
        column = max(map(len, texts), default=0) + 6
        lines.append(title)
        for name, text in texts.items():
            wrapped = textwrap.wrap(text, max((width or 1000) - column, 20))
            lines.append(f"  --{name}".ljust(column) + wrapped[0])
            lines += [" " * column + line for line in wrapped[1:]]
        lines.append("")
    return lines[:-1]


def given_resources(values: Any) -> dict[str, Any]:
    """Returns the resources that flags request, of whatever engine, by name."""
    engine = outside_engine([f"--on={values.on or ''}"])
    classes = [*ENGINES.values(), *([engine] if engine else [])]
    names = [field.name for each in classes for field in resource_fields(each.resources_type)]
    return {name: value for name in names if (value := getattr(values, name))}

"""The flags of `t5lite launch`: its own, and those that derive from the resources of engines."""

import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags

from t5lite.core.errors import UserError
from t5lite.launching.engines.resources import ResourceField, resource_fields
from t5lite.launching.engines.table import ENGINES, engine_class

LAUNCH_FLAGS = "launch"
SWEEP_FLAGS = "sweeps"


STRINGS = {
    LAUNCH_FLAGS: {
        "on": "Engine: local, slurm or slurm:PARTITION, tpu:SLICE such as tpu:v5e-256, gke:SLICE "
        "such as gke:tpu7x-64, or module:Class for an engine of your own.",
        "name": "Name of the launch; everything it writes is in --dir/NAME.",
    },
    SWEEP_FLAGS: {
        "sweep_file": "A gin file that binds sweep.values, or sweep.listed for the trials one by "
        "one.",
        "method": "How settings are chosen: grid, random, quasi or tpe; if not given, grid if the "
        "space has one, else quasi-random.",
        "prune": "Stop bad trials early: asha or hyperband.",
        "minimize": "Metric to minimize; cross_entropy_nats_per_token of the evaluation if not "
        "given. SPLIT/NAME is a metric of another split.",
        "maximize": "Metric to maximize instead.",
    },
}
INTEGERS = {
    LAUNCH_FLAGS: {
        "parallel": "Trials at a time; if not given, all of them on Slurm and GKE, else 1.",
    },
    SWEEP_FLAGS: {
        "trials": "Number of trials, if the method samples them.",
        "vectorized": "Number of trials that train in one program in this process; they may differ "
        "in numbers only.",
    },
}


def define_launch_flags(values: flags.FlagValues, engine: type[Any] | None = None) -> None:
    """Defines the flags of `launch`.

    Args:
        engine: an engine from outside the package whose resources become flags too.

    Raises:
        UserError: if a resource of that engine has the name of another flag.
    """
    for group in STRINGS.values():
        for name, text in group.items():
            flags.DEFINE_string(name, None, text, flag_values=values)
    for group in INTEGERS.values():
        for name, text in group.items():
            flags.DEFINE_integer(name, None, text, lower_bound=1, flag_values=values)
    flags.DEFINE_string("dir", "runs", "Folder of launches; runs if not given.", flag_values=values)
    flags.DEFINE_integer(
        "max_failures",
        3,
        "Restarts of a trial after a crash, 3 if not given; restarts after a preemption are free.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "dry_run",
        False,
        "Validate the launch and print what would be run or submitted.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "NAME=VALUES: a gin binding and a list, range(3), uniform(0.0, 0.3) or log(1e-4, 1e-2), "
        "with a third number for the points of a grid; may be repeated.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed", None, "Seed of sampled settings; 0 if not given.", flag_values=values
    )
    flags.DEFINE_boolean(
        "allow_repeats", False, "Run sampled or listed settings more than once.", flag_values=values
    )
    flags.DEFINE_integer(
        "trial", None, "logs: the trial to print.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_boolean(
        "json", False, "status, results: print one JSON document.", flag_values=values
    )
    flags.DEFINE_boolean("help", False, "Print this help.", short_name="h", flag_values=values)
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
            _define(field, values)


def _define(field: ResourceField, values: flags.FlagValues) -> None:
    if field.kind is int:
        flags.DEFINE_integer(
            field.name, None, field.help, lower_bound=field.minimum, flag_values=values
        )
    elif field.kind is bool:
        flags.DEFINE_boolean(field.name, False, field.help, flag_values=values)
    elif field.kind is tuple:
        flags.DEFINE_multi_string(field.name, [], field.help, flag_values=values)
    else:
        flags.DEFINE_string(field.name, None, field.help, flag_values=values)


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


def launch_flag_lines(
    values: flags.FlagValues, engine: type[Any] | None = None, *, width: int | None = None
) -> list[str]:
    """Returns the flags of `launch` for `--help`, those of an engine under the engine.

    Args:
        width: columns of the terminal; None for any width.
    """
    names = {
        "common flags:": [
            *STRINGS[LAUNCH_FLAGS],
            "dir",
            *INTEGERS[LAUNCH_FLAGS],
            "max_failures",
            "dry_run",
            "help",
        ],
        "sweeps:": [
            "sweep",
            *STRINGS[SWEEP_FLAGS],
            *INTEGERS[SWEEP_FLAGS],
            "seed",
            "allow_repeats",
        ],
        "status, results, logs:": ["json", "trial"],
    }
    groups = {
        title: {name: str(values[name].help).split(";\n")[0] for name in group}
        for title, group in names.items()
    }
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

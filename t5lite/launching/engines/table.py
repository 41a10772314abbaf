"""The engines by name, and engines from outside the package."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, check_choice, suggestion
from t5lite.core.named import import_function
from t5lite.launching.engines.engine import Engine
from t5lite.launching.engines.gke.engine import GkeEngine
from t5lite.launching.engines.local import LocalEngine
from t5lite.launching.engines.resources import make_resources, resource_fields
from t5lite.launching.engines.slurm import SlurmEngine
from t5lite.launching.engines.tpu.engine import TpuEngine
from t5lite.launching.launch import Launch

ENGINES: dict[str, type[Engine]] = {
    "local": LocalEngine,
    "slurm": SlurmEngine,
    "tpu": TpuEngine,
    "gke": GkeEngine,
}


def engine_class(on: str) -> tuple[type[Engine], str]:
    """Returns the class that a value of `--on` names, and the target after the name.

    It is a name of `ENGINES`, or "module:Class" for a subclass of `Engine` from outside the
    package; both may be followed by ":TARGET".

    Raises:
        UserError: if there is no such engine.
    """
    name, colon, target = on.partition(":")
    if name in ENGINES:
        return ENGINES[name], target
    if not colon:
        check_choice("--on", name, ENGINES)
    class_name, _, target = target.partition(":")
    try:
        found: Any = import_function("--on", f"{name}:{class_name}")
    except UserError as error:
        raise UserError(f"{error}; {suggestion(name, ENGINES)}") from error
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise UserError(f"--on: '{name}:{class_name}' must be a subclass of {Engine.__name__}")
    return found, target


def engine_of(launch: Launch) -> Engine:
    """Returns the engine of a launch.

    Raises:
        UserError: for a request that the engine does not take, by the name of its flag.
    """
    found, target = engine_class(launch.engine)
    if launch.vectorized and not found.vectorizes:
        able = " or ".join(name for name, each in ENGINES.items() if each.vectorizes)
        raise UserError(f"--vectorized is for --on={able}, got {launch.engine}")
    given = make_resources(found.resources_type, launch.engine, launch.resources, _owners())
    return found(launch, target, given)


@functools.cache
def _owners() -> Mapping[str, Sequence[str]]:
    """Returns the engines that take each flag."""
    owners: dict[str, list[str]] = {}
    for name, each in ENGINES.items():
        for field in resource_fields(each.resources_type):
            owners.setdefault(field.name, []).append(name)
    return owners

"""Distinct settings: no method runs the same setting twice unless the user asks for it."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.core.errors import UserError
from t5lite.launching.sweeps.space import Scalar, Space, ValueList, grid_settings

SAMPLED_METHODS = ("random", "quasi", "tpe")
METHODS = ("grid", "list", *SAMPLED_METHODS)
PRUNERS = ("asha", "hyperband")
# Random draws in search of a setting that was not drawn before, for each setting that is wanted.
MAX_DRAWS = 64

Setting = Mapping[str, Scalar]


def setting_key(setting: Setting) -> tuple[tuple[str, str], ...]:
    """Returns what two settings have in common if they are the same.

    >>> setting_key({"b": 1, "a": 0.5}) == setting_key({"a": 0.5, "b": 1})
    True
    """
    return tuple((name, repr(value)) for name, value in sorted(setting.items()))


def is_seed(name: str) -> bool:
    """Whether a binding or macro is a seed.

    Trials that differ only in seeds repeat one setting on purpose; their spread is noise.

    >>> is_seed("train.seed"), is_seed("SEED"), is_seed("train.data_seed"), is_seed("a.seeds")
    (True, True, True, False)
    """
    parameter = name.rpartition(".")[2].lower()
    return parameter == "seed" or parameter.endswith("_seed")


def without_seeds(setting: Setting) -> dict[str, Scalar]:
    """Returns a setting without its seeds."""
    return {name: value for name, value in setting.items() if not is_seed(name)}


def num_settings(space: Space) -> int | None:
    """Returns the number of settings of a space; None if it is infinite.

    >>> from t5lite.launching.sweeps.space import parse_space
    >>> num_settings(parse_space({"a": "[1, 2]", "b": "uniform(0, 4)"}))
    10
    """
    sizes = [values.num_values for values in space.values()]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def count_distinct(settings: Iterable[Setting]) -> int:
    """Returns the number of different settings."""
    return len({setting_key(setting) for setting in settings})


def unseen_settings(space: Space, seen: Collection[Any]) -> Iterator[dict[str, Scalar]]:
    """Yields the settings of a finite space whose keys are not in `seen`, in order."""
    columns = [
        values.values
        if isinstance(values, ValueList)
        else range(int(values.low), int(values.high) + 1)
        for values in space.values()
    ]
    for row in itertools.product(*columns):
        setting = dict(zip(space, row, strict=True))
        if setting_key(setting) not in seen:
            yield setting


def planned_settings(
    method: str,
    space: Space,
    *,
    trials: int | None,
    listed: Sequence[dict[str, Any]] = (),
    seed: int = 0,
    allow_repeats: bool = False,
) -> list[dict[str, Any]]:
    """Returns the settings of all trials; none for a method that learns from earlier trials.

    With `random` and `quasi` the first settings do not depend on the number of trials. A finite
    space may yield fewer settings than `trials`.

    Raises:
        UserError: if the number of trials is missing or does not fit, or a list repeats a setting.
    """
    if method == "list":
        if not allow_repeats and count_distinct(listed) < len(listed):
            raise UserError(
                f"sweep.listed must hold different settings, got {len(listed)} of which "
                f"{count_distinct(listed)} differ; use --allow_repeats to run repeated ones"
            )
        return list(listed)
    if method == "grid":
        settings = grid_settings(space)
        if trials not in (None, len(settings)):
            raise UserError(f"--trials of this grid must be {len(settings)}, got {trials}")
        return settings
    if trials is None:
        raise UserError(f"--method={method} needs --trials, the number of settings to sample")
    if method == "tpe":
        return []
    size = num_settings(space)
    wanted = trials if allow_repeats or size is None else min(trials, size)
    if allow_repeats:
        return _draw(method, space, wanted, seed)
    found: dict[Any, dict[str, Any]] = {}
    draws = wanted
    while len(found) < wanted and draws <= MAX_DRAWS * wanted:
        for setting in _draw(method, space, draws, seed):
            if len(found) < wanted:
                found.setdefault(setting_key(setting), setting)
        draws *= 2
    if size is not None:
        rest = itertools.islice(unseen_settings(space, set(found)), wanted - len(found))
        return [*found.values(), *rest]
    return list(found.values())


def _draw(method: str, space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Returns `count` settings, which may repeat; more of them begin with the same ones."""
    if method == "random":
        points = np.random.default_rng(seed).random((count, len(space)))
    else:
        # Imported late: it takes as long as everything else that `launch status` imports.
        import scipy.stats

        # A Sobol sequence is balanced in powers of two; a prefix of one is taken.
        sequence = scipy.stats.qmc.Sobol(len(space), rng=seed)
        points = sequence.random_base2(max(count - 1, 1).bit_length())[:count]
    return [
        {name: values.at(float(x)) for (name, values), x in zip(space.items(), row, strict=True)}
        for row in points
    ]

"""Which parameters train, chosen by patterns over their names; the others are constants.

A pattern must match a whole name such as "encoder/layers/mlp/wi_0/kernel".
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import flax.traverse_util

from t5lite.core.errors import UserError, suggestion
from t5lite.core.patterns import matches

EVERYTHING = (".*",)


def trainable_names(owner: str, patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """Returns the names that any of the patterns matches, in order.

    Raises:
        UserError: if a pattern matches no name.

    >>> trainable_names("train.trainable", ["b/.*"], ["a/x", "b/x"])
    ['b/x']
    """
    names = sorted(names)
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise UserError(
                f"{owner}: {pattern!r} matches no parameter; {suggestion(pattern, names)}"
            )
    return [name for name in names if matches(name, patterns)]


def split_params(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """Returns the part of a parameter tree that trains, and the part that is constant.

    Leaves may be anything, such as the names of axes.

    >>> split_params({"a": {"x": 1}, "b": {"x": 2}}, ["b/.*"])
    ({'b': {'x': 2}}, {'a': {'x': 1}})
    """
    names = flax.traverse_util.flatten_dict(params, sep="/")
    return split_by_name(params, [name for name in names if matches(name, patterns)])


def split_by_name(params: Any, names: Collection[str]) -> tuple[Any, Any]:
    """Returns the parameters with these names, and the others.

    >>> split_by_name({"a": {"x": 1, "y": 2}}, ["a/y"])
    ({'a': {'y': 2}}, {'a': {'x': 1}})
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    chosen = frozenset(names)
    parts = [{n: x for n, x in flat.items() if (n in chosen) is wanted} for wanted in (True, False)]
    named, others = (flax.traverse_util.unflatten_dict(part, sep="/") for part in parts)
    return named, others


def join_params(trained: Any, constant: Any) -> Any:
    """Returns the tree whose two parts `split_params` returned.

    >>> join_params({'b': {'x': 2}}, {'a': {'x': 1}})
    {'b': {'x': 2}, 'a': {'x': 1}}
    """
    flat = [flax.traverse_util.flatten_dict(part, sep="/") for part in (trained, constant)]
    return flax.traverse_util.unflatten_dict({**flat[0], **flat[1]}, sep="/")

"""Which parameters train, chosen by patterns over their names; the others are constants.

A pattern must match a whole name such as "encoder/layers/mlp/wi_0/kernel".
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import flax.traverse_util

from t5lite.core.errors import UserError, suggestion

EVERYTHING = (".*",)


def check_patterns(owner: str, patterns: Sequence[Any]) -> None:
    """Checks that there is at least one pattern and that each is a regular expression.

    Raises:
        UserError: naming the pattern that is not.
    """
    if not patterns:
        raise UserError(f"{owner} must name at least one pattern, got none; all is ['.*']")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UserError(f"{owner} must be regular expressions, got {pattern!r}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{owner} must be regular expressions, got {pattern!r}: {error}"
            ) from error


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
    return [name for name in names if _trains(name, patterns)]


def split_params(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """Returns the part of a parameter tree that trains, and the part that is constant.

    Leaves may be anything, such as the names of axes.

    >>> split_params({"a": {"x": 1}, "b": {"x": 2}}, ["b/.*"])
    ({'b': {'x': 2}}, {'a': {'x': 1}})
    """
    trained: dict[str, Any] = {}
    constant: dict[str, Any] = {}
    for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items():
        (trained if _trains(name, patterns) else constant)[name] = leaf
    return (
        flax.traverse_util.unflatten_dict(trained, sep="/"),
        flax.traverse_util.unflatten_dict(constant, sep="/"),
    )


def join_params(trained: Any, constant: Any) -> Any:
    """Returns the tree whose two parts `split_params` returned.

    >>> join_params({'b': {'x': 2}}, {'a': {'x': 1}})
    {'b': {'x': 2}, 'a': {'x': 1}}
    """
    flat = [flax.traverse_util.flatten_dict(part, sep="/") for part in (trained, constant)]
    return flax.traverse_util.unflatten_dict({**flat[0], **flat[1]}, sep="/")


def _trains(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)

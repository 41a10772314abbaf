"""Patterns over names: regular expressions of which one must match a whole name."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from t5lite.core.errors import UserError, suggestion


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


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Returns whether any of the patterns matches the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def first_matches(owner: str, patterns: Sequence[str], names: Iterable[str]) -> dict[str, int]:
    """Returns for each name the number of the first pattern that matches it, from 0.

    Raises:
        UserError: if a name matches none, or a pattern is the first for no name.

    >>> first_matches("rules", ["b/.*", ".*"], ["a/x", "b/x"])
    {'a/x': 1, 'b/x': 0}
    """
    found: dict[str, int] = {}
    names = list(names)
    for name in names:
        numbers = [n for n, pattern in enumerate(patterns) if re.fullmatch(pattern, name)]
        if not numbers:
            raise UserError(
                f"{owner} must match every parameter that trains, got none for {name}; add the "
                "pattern '.*' at the end"
            )
        found[name] = numbers[0]
    for number, pattern in enumerate(patterns):
        if number not in found.values():
            matched = next((name for name in names if re.fullmatch(pattern, name)), None)
            why = f"matches no parameter; {suggestion(pattern, names)}"
            if matched is not None:
                why = f"matches {matched}, for which an earlier pattern applies"
            raise UserError(f"{owner}: {pattern!r} {why}")
    return found

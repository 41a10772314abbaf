"""Texts that preprocessors leave as they are: the special pieces of a vocabulary."""

import itertools
import re
from collections.abc import Callable, Iterable


def kept_pattern(texts: Iterable[str], *patterns: str) -> re.Pattern[str] | None:
    """Returns a pattern that matches texts, the longest first, and other patterns; None for none.

    >>> kept_pattern(["<s>", "<s>b"], "<extra_id_[0-9]>").findall("a<s>b<extra_id_1>")
    ['<s>b', '<extra_id_1>']
    """
    escaped = map(re.escape, sorted(texts, key=len, reverse=True))
    every = [*escaped, *patterns]
    return re.compile("|".join(every)) if every else None


def changed_between(kept: re.Pattern[str] | None, change: Callable[[str], str], text: str) -> str:
    """Returns the changed text, in which the matches of `kept` stay what they are.

    They may be removed together with the text around them, but not changed.

    >>> changed_between(re.compile("<SEP>"), str.lower, "A <SEP> B")
    'a <SEP> b'
    """
    found = [match.group() for match in kept.finditer(text)] if kept else []
    if kept is None or not found:
        return change(text)
    mark = unused_character(text)
    numbers = itertools.count()
    hidden = kept.sub(lambda _: f"{mark}{next(numbers)}{mark}", text)
    return re.sub(f"{mark}([0-9]+){mark}", lambda match: found[int(match[1])], change(hidden))


def unused_character(text: str) -> str:
    """Returns a character of a private plane of Unicode that the text does not have."""
    used = set(text)
    return next(
        character for character in map(chr, range(0xF0000, 0x110000)) if character not in used
    )

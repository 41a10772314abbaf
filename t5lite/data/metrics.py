"""Metrics of written text against its targets, and what is done to both before: by name.

A metric takes the targets and the predictions of a whole split, in one order, and returns scores by
name. A step takes a text and returns it changed.
"""

import collections
from collections.abc import Callable, Mapping, Sequence

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]
TextStep = Callable[[str], str]


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions that are the target, letter for letter.

    >>> exact_match(["a b", "c"], ["a b", "C"])
    {'exact_match_fraction': 0.5}
    """
    matches = sum(t == p for t, p in zip(targets, predictions, strict=True))
    return {"exact_match_fraction": matches / len(targets)}


def word_f1(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Mean over examples of the F1 of the words, whatever their order.

    >>> word_f1(["a b", ""], ["b c d", ""])
    {'word_f1_fraction': 0.7}
    """

    def f1(target: Sequence[str], prediction: Sequence[str]) -> float:
        if not target and not prediction:
            return 1.0
        common = collections.Counter(target) & collections.Counter(prediction)
        return 2 * common.total() / (len(target) + len(prediction))

    pairs = zip(targets, predictions, strict=True)
    return {"word_f1_fraction": sum(f1(t.split(), p.split()) for t, p in pairs) / len(targets)}


METRICS: Mapping[str, Metric] = {"exact_match": exact_match, "word_f1": word_f1}


def normalize_whitespace(text: str) -> str:
    """Runs of white space become one space, none at either end."""
    return " ".join(text.split())


TEXT_STEPS: Mapping[str, TextStep] = {
    "lowercase": str.lower,
    "normalize_whitespace": normalize_whitespace,
}

"""Pairs of words that follow each other, as words of their own, for several experiments."""

import itertools

FIELDS = ("question", "text")


def add_bigrams(record):
    """Appends the pairs of a question or text, which begin with the first word alone.

    >>> add_bigrams({"question": "how far is it"})
    {'question': 'how far is it _how how_far far_is is_it'}
    """
    changed = dict(record)
    for field in FIELDS:
        if field in record:
            words = record[field].split()
            pairs = map("_".join, itertools.pairwise(["", *words]))
            changed[field] = " ".join([*words, *pairs])
    return changed

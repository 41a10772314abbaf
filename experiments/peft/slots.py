"""F1 of the slots of utterances, each of which is written as one text; for `Task.metrics`."""

import collections


def slot_f1(answers, predictions):
    """F1 of pairs of a slot and its value, separated by semicolons; "none" has no pair.

    >>> slot_f1([["time : 7 ; people : 2"], ["none"]], ["people : 2 ; time : 8", "none"])
    {'slot_f1_fraction': 0.5}
    """
    pairs = [
        (_values(right[0]), _values(found))
        for right, found in zip(answers, predictions, strict=True)
    ]
    hits = sum((right & found).total() for right, found in pairs)
    values = sum(right.total() + found.total() for right, found in pairs)
    return {"slot_f1_fraction": 2 * hits / values if values else 1.0}


def _values(text):
    return collections.Counter(part.strip() for part in text.split(";") if part.strip() != "none")

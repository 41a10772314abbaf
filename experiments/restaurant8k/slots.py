"""F1 of values that are found for slots, as a metric of `Task.metrics`."""


def slot_f1(answers, predictions):
    """F1 of predicted values that equal the right one; an empty text is no value.

    >>> slot_f1([["9 people"], [""], ["8 pm"]], ["9 people", "today", ""])
    {'slot_f1_fraction': 0.5}
    """
    pairs = [(right[0], found) for right, found in zip(answers, predictions, strict=True)]
    hits = sum(bool(found) and found == right for right, found in pairs)
    values = sum(bool(text) for pair in pairs for text in pair)
    return {"slot_f1_fraction": 2 * hits / values if values else 1.0}

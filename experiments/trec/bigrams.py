"""Pairs of words that follow each other, as words of their own."""


def add_bigrams(record):
    """Appends the pairs of a question, which begin with the first word alone.

    >>> add_bigrams({"question": "how far is it"})
    {'question': 'how far is it _how how_far far_is is_it'}
    """
    words = record["question"].split()
    pairs = map("_".join, zip(["", *words], words, strict=False))
    return {**record, "question": " ".join([*words, *pairs])}

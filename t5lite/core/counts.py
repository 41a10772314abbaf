"""Counts in messages."""


def counted(count: int, noun: str) -> str:
    """Returns a count and its noun, in the plural unless the count is 1.

    >>> counted(1, "step"), counted(1000, "step"), counted(0, "step")
    ('1 step', '1,000 steps', '0 steps')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

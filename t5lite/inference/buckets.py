"""Batches of examples of similar length: little padding, and few programs to compile."""

from collections.abc import Sequence

# The shortest rows for which a program is compiled, in tokens.
SHORTEST_BUCKET = 16


def bucket(length: int, longest: int, *, fixed: bool = False) -> int:
    """Returns the row length for an example of `length` tokens: a power of two, at most `longest`.

    Args:
        longest: tokens of the longest example.
        fixed: whether every row has the longest length. A mixture of experts needs that: the
            capacity of its experts grows with the row length, padding included.

    >>> bucket(3, 20), bucket(17, 100), bucket(17, 20), bucket(3, 20, fixed=True)
    (16, 32, 20, 20)
    """
    size = longest if fixed else max(SHORTEST_BUCKET, 1 << max(length - 1, 0).bit_length())
    return max(length, min(size, longest))


def batches_by_length(sizes: Sequence[tuple[int, ...]], batch_size: int) -> list[list[int]]:
    """Returns the indices of each batch: examples of similar size, the largest first.

    With the largest first, a batch that does not fit in memory fails at once.

    >>> batches_by_length([(3, 1), (9, 1), (8, 2)], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(sizes)), key=lambda n: sizes[n], reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

"""Which examples are read together, so that little is padding and few programs are compiled."""

from collections.abc import Sequence

# The shortest rows that are worth a program of their own, in tokens.
SHORTEST = 16


def bucket(length: int, *, longest: int | None = None) -> int:
    """Returns the length of row that an example of `length` tokens is read in: a power of two.

    Args:
        longest: rows need be no longer than this.

    >>> bucket(3), bucket(17), bucket(17, longest=20)
    (16, 32, 20)
    """
    size = max(SHORTEST, 1 << max(length - 1, 0).bit_length())
    return size if longest is None else max(length, min(size, longest))


def batches_by_length(sizes: Sequence[tuple[int, ...]], batch_size: int) -> list[list[int]]:
    """Returns which examples make each batch: alike in size, the largest first.

    The largest first, so that a batch for which there is no memory fails at once.

    >>> batches_by_length([(3, 1), (9, 1), (8, 2)], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(sizes)), key=lambda n: sizes[n], reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

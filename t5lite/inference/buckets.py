"""Which examples are read together, so that little is padding and few programs are compiled."""

from collections.abc import Sequence

# The shortest rows that are worth a program of their own, in tokens.
SHORTEST = 16


def bucket(length: int, longest: int, *, fixed: bool = False) -> int:
    """Returns the length of row that an example of `length` tokens is read in: a power of two.

    Args:
        longest: no example is longer than this.
        fixed: whether all rows are as long as the longest, as a mixture of experts needs: its
            places are so many for each token of a row, padding included.

    >>> bucket(3, 20), bucket(17, 100), bucket(17, 20), bucket(3, 20, fixed=True)
    (16, 32, 20, 20)
    """
    size = longest if fixed else max(SHORTEST, 1 << max(length - 1, 0).bit_length())
    return max(length, min(size, longest))


def batches_by_length(sizes: Sequence[tuple[int, ...]], batch_size: int) -> list[list[int]]:
    """Returns which examples make each batch: alike in size, the largest first.

    The largest first, so that a batch for which there is no memory fails at once.

    >>> batches_by_length([(3, 1), (9, 1), (8, 2)], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(sizes)), key=lambda n: sizes[n], reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

"""Packing: which waiting examples share the next row.

How full the rows are depends on the lengths. Measured with the constants below, with uniform
lengths, as the fraction of positions that hold a token:

    one axis, or targets in proportion to the inputs    97 % and more
    inputs and targets of independent lengths           88 %

In the second case a row is complete when it is full on one of its two axes.
"""

from collections.abc import Sequence

# An example waits for at most this many later examples.
MAX_WAITING = 256

# Examples are read ahead until the waiting ones would fill this many rows.
ROWS_AHEAD = 16

# Fraction of a row that may stay empty without another attempt. A smaller fraction uses up the
# short examples, and later rows are emptier.
NEARLY_FULL = 0.03

# Size classes of equal width.
NUM_CLASSES = 32

# Tokens of an example on each axis of a row, as in `Layout.sizes`: one number or two.
Sizes = tuple[int, ...]


def enough_waiting(totals: Sequence[int], capacity: Sizes, *, span: int) -> bool:
    """Returns whether enough examples wait to choose a row.

    Args:
        totals: sums of the sizes of all waiting examples.
        span: examples read since the oldest waiting one, including it.
    """
    if span >= MAX_WAITING:
        return True
    return any(total >= ROWS_AHEAD * room for total, room in zip(totals, capacity, strict=True))


def choose_row(sizes: Sequence[Sizes], capacity: Sizes) -> list[int]:
    """Returns the indices of the waiting examples that share the next row, in reading order.

    The oldest is always in the row, so that none waits indefinitely. The others are chosen from
    large to small, as long as they fit. If the row is not nearly full, further attempts leave out
    the largest, then the two largest, and so on; the fullest row wins.

    >>> choose_row([(200,), (300,), (100,), (312,)], (512,))
    [0, 3]
    >>> choose_row([(200, 9), (300, 9), (312, 1), (12, 1)], (512, 11))
    [0, 2]
    """
    # With a single axis the first and the last are the same.
    room = capacity[0]
    other_room = capacity[-1]
    free = room - sizes[0][0]
    other_free = other_room - sizes[0][-1]
    assert min(free, other_free) >= 0, (sizes[0], capacity)
    classes = [int(NUM_CLASSES * max(s[0] / room, s[-1] / other_room)) for s in sizes]
    # Within a size class the oldest come first; otherwise short examples would wait long.
    largest_first = sorted(range(1, len(sizes)), key=classes.__getitem__, reverse=True)
    best: list[int] = []
    # A row is full if one of its axes is.
    least = min(free / room, other_free / other_room)
    for start in range(len(largest_first)):
        if least <= NEARLY_FULL:
            break
        chosen: list[int] = []
        left = free
        other_left = other_free
        for index in largest_first[start:]:
            size = sizes[index]
            if size[0] <= left and size[-1] <= other_left:
                chosen.append(index)
                left -= size[0]
                other_left -= size[-1]
        # Later attempts choose among fewer examples.
        if not chosen:
            break
        if (share := min(left / room, other_left / other_room)) < least:
            best = chosen
            least = share
    return [0, *sorted(best)]

"""Packing: which of the examples that wait go into the next row."""

from collections.abc import Sequence

# An example waits until at most so many later ones have been read.
MAX_WAITING = 256

# Examples are read ahead until those that wait would fill so many rows.
ROWS_AHEAD = 16

# Share of a row that may stay empty without another try. With less, the small examples are used
# up and later rows stay emptier.
NEARLY_FULL = 0.03

# Classes of size, of equal width.
NUM_CLASSES = 32

# What an example takes of a row, as `Layout.sizes` has it: one number or two.
Sizes = tuple[int, ...]


def enough_waiting(totals: Sequence[int], capacity: Sizes, *, span: int) -> bool:
    """Returns whether a row can be made up now.

    Args:
        totals: sums of the sizes of all that wait.
        span: examples read since the oldest that waits, itself included.
    """
    if span >= MAX_WAITING:
        return True
    return any(total >= ROWS_AHEAD * room for total, room in zip(totals, capacity, strict=True))


def choose_row(sizes: Sequence[Sizes], capacity: Sizes) -> list[int]:
    """Returns which of the waiting examples make up the next row, in the order of their reading.

    The oldest goes in any case, so none waits for ever. Beside it go the largest that still fit;
    where that leaves room, without the very largest, then without the second too, and so on.

    >>> choose_row([(200,), (300,), (100,), (312,)], (512,))
    [0, 3]
    >>> choose_row([(200, 9), (300, 9), (312, 1), (12, 1)], (512, 11))
    [0, 2]
    """
    # First and last are the same where there is one.
    room, other_room = capacity[0], capacity[-1]
    free, other_free = room - sizes[0][0], other_room - sizes[0][-1]
    assert min(free, other_free) >= 0, (sizes[0], capacity)
    classes = [int(NUM_CLASSES * max(s[0] / room, s[-1] / other_room)) for s in sizes]
    # Of those about as large the older first: short examples would wait for long.
    largest_first = sorted(range(1, len(sizes)), key=classes.__getitem__, reverse=True)
    best: list[int] = []
    # A row is full when it has no room left on one of its axes.
    least = min(free / room, other_free / other_room)
    for start in range(len(largest_first)):
        if least <= NEARLY_FULL:
            break
        chosen, left, other_left = [], free, other_free
        for index in largest_first[start:]:
            size = sizes[index]
            if size[0] <= left and size[-1] <= other_left:
                chosen.append(index)
                left, other_left = left - size[0], other_left - size[-1]
        # Nothing fits beside the oldest, nor will it among the smaller ones.
        if not chosen:
            break
        if (share := min(left / room, other_left / other_room)) < least:
            best, least = chosen, share
    return [0, *sorted(best)]

"""The rows of one stream, packed or not, and the cursor to continue it from."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from t5lite.core.examples import Example
from t5lite.data.batching.features import Layout
from t5lite.data.batching.packing import choose_row, enough_waiting
from t5lite.data.batching.readers import TextPosition


@dataclasses.dataclass(frozen=True)
class Cursor:
    """The state of the stream of one row.

    Args:
        example: number of the oldest example that is not in a row yet.
        positions: for each task, the position in its text before that example.
        taken: numbers of later examples that are already in a row, packed with older ones.
    """

    example: int
    positions: tuple[TextPosition, ...]
    taken: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the cursor as a JSON value."""
        positions = [list(position) for position in self.positions]
        return {"example": self.example, "positions": positions, "taken": list(self.taken)}

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "Cursor":
        """Returns the cursor from the value that `to_json` returned."""
        # Version 0.1 had another name for `positions`, with the same rank in alphabetical order.
        example, positions, taken = (fields[name] for name in sorted(fields))
        return Cursor(example, tuple(TextPosition(*each) for each in positions), tuple(taken))


def first_cursor(num_tasks: int) -> Cursor:
    """Returns the cursor at the beginning of a stream."""
    return Cursor(0, (TextPosition(),) * num_tasks)


class _Waiting(NamedTuple):
    """An example that is in no row yet, and the positions before it."""

    number: int
    positions: tuple[TextPosition, ...]
    example: Example
    sizes: tuple[int, ...]


# Maps the number of an example and the positions before it to the example and the positions after.
MakeExample = Callable[[int, tuple[TextPosition, ...]], tuple[Example, tuple[TextPosition, ...]]]


class RowStream:
    """The rows of one stream, each a list of examples: a single one, or several if `packed`.

    `cursor` is the whole state: another stream from the same cursor gives the same rows.
    """

    def __init__(self, make: MakeExample, layout: Layout, cursor: Cursor, *, packed: bool) -> None:
        self._make = make
        self._layout = layout
        self._packed = packed
        self._capacity = layout.capacity
        self._next = cursor.example
        self._positions = cursor.positions
        # Oldest first, with the sums of their sizes.
        self._waiting: list[_Waiting] = []
        self._totals = [0] * len(self._capacity)
        # Read again, but only to get past them.
        self._taken = set(cursor.taken)

    @property
    def cursor(self) -> Cursor:
        """The state after the rows returned so far."""
        if not self._waiting:
            return Cursor(self._next, self._positions)
        oldest = self._waiting[0]
        waiting = {waiting.number for waiting in self._waiting}
        taken = [number for number in range(oldest.number, self._next) if number not in waiting]
        return Cursor(oldest.number, oldest.positions, tuple(sorted({*taken, *self._taken})))

    def __next__(self) -> list[Example]:
        if not self._packed:
            example, self._positions = self._make(self._next, self._positions)
            self._next += 1
            return [example]
        while not self._waiting or not enough_waiting(
            self._totals, self._capacity, span=self._next - self._waiting[0].number
        ):
            self._read()
        row = choose_row([waiting.sizes for waiting in self._waiting], self._capacity)
        chosen = [self._waiting[index] for index in row]
        for index in reversed(row):
            del self._waiting[index]
        self._count(chosen, -1)
        return [waiting.example for waiting in chosen]

    def _read(self) -> None:
        number = self._next
        positions = self._positions
        example, self._positions = self._make(number, positions)
        self._next += 1
        if number in self._taken:
            self._taken.remove(number)
            return
        self._waiting.append(_Waiting(number, positions, example, self._layout.sizes(example)))
        self._count(self._waiting[-1:], 1)

    def _count(self, some: Sequence[_Waiting], sign: int) -> None:
        for waiting in some:
            for axis, size in enumerate(waiting.sizes):
                self._totals[axis] += sign * size

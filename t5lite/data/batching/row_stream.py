"""The rows of one stream, packed or not, from any place on."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from t5lite.core.examples import Example
from t5lite.data.batching.features import Layout
from t5lite.data.batching.packing import choose_row, enough_waiting
from t5lite.data.batching.readers import Place


@dataclasses.dataclass(frozen=True)
class Cursor:
    """Where the stream of one row stands.

    Args:
        example: the oldest that is not in a row yet; all before it are.
        places: before that example, (record, offset) of every task.
        taken: those after it that are in a row already, packed with older ones.
    """

    example: int
    places: tuple[Place, ...]
    taken: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the cursor as JSON has it."""
        places = [list(place) for place in self.places]
        return {"example": self.example, "places": places, "taken": list(self.taken)}

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "Cursor":
        """Returns what `to_json` was made from."""
        places = tuple(Place(*place) for place in fields["places"])
        return Cursor(fields["example"], places, tuple(fields["taken"]))


def first_cursor(num_tasks: int) -> Cursor:
    """Returns the cursor of a row from which nothing was read."""
    return Cursor(0, (Place(),) * num_tasks)


class _Waiting(NamedTuple):
    """An example that is in no row yet, and the places before it."""

    number: int
    places: tuple[Place, ...]
    example: Example
    sizes: tuple[int, ...]


# From the number of an example and the places before it, to it and the places after it.
MakeExample = Callable[[int, tuple[Place, ...]], tuple[Example, tuple[Place, ...]]]


class RowStream:
    """The rows of one stream, each a list of examples: one, or where `packed` what fits together.

    `cursor` is the state: another stream that begins with it gives the same rows.
    """

    def __init__(self, make: MakeExample, layout: Layout, cursor: Cursor, *, packed: bool) -> None:
        self._make, self._layout, self._packed = make, layout, packed
        self._capacity = layout.capacity
        self._next, self._places = cursor.example, cursor.places
        # Oldest first, with the sums of their sizes.
        self._waiting: list[_Waiting] = []
        self._totals = [0] * len(self._capacity)
        # Read again only to get past them.
        self._taken = set(cursor.taken)

    @property
    def cursor(self) -> Cursor:
        """Where the stream stands after the rows it has given."""
        if not self._waiting:
            return Cursor(self._next, self._places)
        oldest = self._waiting[0]
        waiting = {waiting.number for waiting in self._waiting}
        taken = [number for number in range(oldest.number, self._next) if number not in waiting]
        return Cursor(oldest.number, oldest.places, tuple(sorted({*taken, *self._taken})))

    def __next__(self) -> list[Example]:
        if not self._packed:
            example, self._places = self._make(self._next, self._places)
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
        number, places = self._next, self._places
        example, self._places = self._make(number, places)
        self._next += 1
        if number in self._taken:
            self._taken.remove(number)
            return
        self._waiting.append(_Waiting(number, places, example, self._layout.sizes(example)))
        self._count(self._waiting[-1:], 1)

    def _count(self, some: Sequence[_Waiting], sign: int) -> None:
        for waiting in some:
            for axis, size in enumerate(waiting.sizes):
                self._totals[axis] += sign * size

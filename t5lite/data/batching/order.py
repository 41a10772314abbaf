"""The order in which training reads the records of a task: by position, without end."""

import functools
from collections.abc import Callable, Sequence

import grain
import numpy as np

from t5lite.data.class_balance import ClassBalance

# From a position in the order to the number of a record.
Order = Callable[[int], int]


def shuffled_order(num_records: int, entropy: tuple[int, ...]) -> Order:
    """Returns the shuffled, repeating order of records; every epoch has each record once."""

    @functools.lru_cache(maxsize=4)
    def epoch_seed(epoch: int) -> int:
        return int(np.random.SeedSequence((*entropy, epoch)).generate_state(1)[0])

    def record(position: int) -> int:
        epoch, index = divmod(position, num_records)
        return int(
            grain.experimental.index_shuffle(
                index, max_index=num_records - 1, seed=epoch_seed(epoch), rounds=4
            )
        )

    return record


def balanced_order(
    balance: ClassBalance, labels: Sequence[str | None], entropy: tuple[int, ...]
) -> Order:
    """Returns the order in which classes are read in fixed numbers.

    Of as many positions as there are records, each class has a fixed number, shuffled. The records
    of a class follow each other in the shuffled, repeating order of that class. So the record at a
    position needs no history.

    Args:
        labels: of all records; None for those that are never read. At least one has a label.
    """
    members = list(balance.members(labels).items())
    counts = balance.counts([name for name, _ in members], len(labels))
    bounds = np.cumsum([0, *counts])
    period = int(bounds[-1])
    slots = shuffled_order(period, (*entropy, 1))
    orders = [
        shuffled_order(len(numbers), (*entropy, 2, index))
        for index, (_, numbers) in enumerate(members)
    ]

    def record(position: int) -> int:
        slot = slots(position)
        index = int(np.searchsorted(bounds, slot, side="right")) - 1
        earlier = position // period * counts[index]
        return members[index][1][orders[index](earlier + slot - int(bounds[index]))]

    return record

"""How training reads the records of a task: in which order, and what is random in their texts.

Evaluation reads records by number, in order and without randomness.
"""

from collections.abc import Callable, Sequence

import numpy as np

from t5lite.core.examples import Tokens
from t5lite.data.batching.order import Order, balanced_order, shuffled_order
from t5lite.data.task import Task
from t5lite.data.tokens import Tokenized, TokenRecords

# Distinguishes the generators of texts from all others of a seed.
_TEXT_ENTROPY = 1

# The class of every record; None for those that are never read.
Labels = Sequence[str | None]


def training_labels(task: Task, split: str) -> Labels | None:
    """Returns the class of every record, if the task balances classes, and checks what is random.

    Raises:
        UserError: for classes or augmentations that do not fit the records.
    """
    records = task.tokens(split)
    if isinstance(records, Tokenized) and records.is_random:
        # So that this process reports errors, before anything is compiled.
        records.read(0, np.random.default_rng(0))
    if task.balance is None:
        return None
    labels = task.labels(split, task.balance.field)
    task.balance.members(labels)
    return labels


def training_order(
    task: Task, records: TokenRecords, labels: Labels | None, entropy: tuple[int, ...]
) -> Order:
    """Returns the record at each position of the order in which a task is read."""
    if task.balance is None or labels is None:
        return shuffled_order(len(records), entropy)
    return balanced_order(task.balance, labels, entropy)


def training_reader(
    records: TokenRecords, order: Order, entropy: tuple[int, ...]
) -> Callable[[int], tuple[Tokens, ...]]:
    """Returns the function from a position in the order to the texts of the record there.

    All randomness in them is a function of (entropy, position): it differs between epochs, and not
    between numbers of processes or batch sizes.
    """
    if not (isinstance(records, Tokenized) and records.is_random):
        return lambda position: records[order(position)]

    def read(position: int) -> tuple[Tokens, ...]:
        rng = np.random.default_rng((*entropy, position, _TEXT_ENTROPY))
        return records.read(order(position), rng)

    return read

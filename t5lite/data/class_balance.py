"""Class-balanced sampling: how often training reads the records of each class."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from t5lite.core.errors import UserError, suggestion
from t5lite.core.fields import field_error, field_name
from t5lite.core.numbers import check_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassBalance:
    """Training reads records by class; the records of a class repeat in an order of their own.

    The label of every record is read when training starts.

    Args:
        field: holds the class of a record, after the preprocessors.
        weights: by class, how often it is read relative to the others, over 0; None for all classes
            alike.

    Raises:
        UserError: for weights that are not numbers over 0.
    """

    field: str
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        if not self.weights:
            raise field_error(self, "weights", "a weight for each class, or None")
        for name, weight in self.weights.items():
            owner = f"{field_name(self, 'weights')}[{name!r}]"
            if not isinstance(weight, int | float) or isinstance(weight, bool):
                raise UserError(f"{owner} must be a number, got {weight!r}")
            check_number(owner, weight, "over 0", lambda w: w > 0)

    def members(self, labels: Sequence[str | None]) -> dict[str, list[int]]:
        """Returns the numbers of the records of each class, in the order of the names.

        Args:
            labels: of all records; None for those that are never read.

        Raises:
            UserError: if the classes are not those of `weights`.

        >>> ClassBalance(field="label").members(["b", "a", None, "b"])
        {'a': [1], 'b': [0, 3]}
        """
        members: dict[str, list[int]] = {name: [] for name in sorted({n for n in labels if n})}
        for number, label in enumerate(labels):
            if label:
                members[label].append(number)
        if self.weights is not None:
            for name in members:
                if name not in self.weights:
                    owner = field_name(self, "weights")
                    raise UserError(
                        f"{owner} must have every class, got none for {name!r}; "
                        f"{suggestion(name, self.weights)}"
                    )
            for name in self.weights:
                if name not in members:
                    owner = field_name(self, "weights")
                    raise UserError(
                        f"{owner} names the class {name!r}, which no record has; "
                        f"{suggestion(name, members)}"
                    )
        return members

    def counts(self, names: Sequence[str], total: int) -> list[int]:
        """Returns how many of `total` records are of each class; at least 1.

        >>> ClassBalance(field="label", weights={"a": 3.0, "b": 1.0}).counts(["a", "b"], 10)
        [8, 2]
        """
        weights = np.array([1.0 if self.weights is None else self.weights[name] for name in names])
        exact = weights / weights.sum() * total
        counts = np.maximum(np.floor(exact), 1)
        # The classes with the largest remainders get one more, the first of equal ones first.
        missing = max(0, total - int(counts.sum()))
        counts[np.argsort(-(exact - counts), kind="stable")[:missing]] += 1
        return [int(count) for count in counts]


def label_of(record: Mapping[str, str], field: str) -> str:
    """Returns the class of a record.

    Raises:
        UserError: if it has no such field, or no text in it.
    """
    if field not in record:
        owner = f"{ClassBalance.__name__}.field"
        raise UserError(f"{owner} names the field {field!r}; {suggestion(field, record)}")
    if not record[field]:
        raise UserError(f"{ClassBalance.__name__}.field {field!r} is empty in a record")
    return record[field]

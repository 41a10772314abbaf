"""Several tasks learned at once, each example from one of them."""

import dataclasses
import math
from collections.abc import Sequence

from t5lite.core.errors import UserError
from t5lite.data.task import Task
from t5lite.data.text.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Tasks, or mixtures of them, each with a share of the examples.

    Args:
        components: tasks and mixtures with one vocabulary.
        shares: how often each is taken, relative to the others; None for its number of records.
        maximum_records: a component counts as no larger than this; None for no limit.
        temperature: numbers of records are raised to 1 / temperature, at least 1, so that small
            components are taken more often.

    Raises:
        UserError: for shares that are not over 0, or tasks that cannot be mixed.

    Source: Raffel et al., Exploring the Limits of Transfer Learning, section 3.5.2.
    """

    components: "Sequence[Task | Mixture]"
    shares: Sequence[float] | None = None
    maximum_records: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.components:
            raise UserError("Mixture.components must hold a task, got none")
        for part in self.components:
            if not isinstance(part, Task | Mixture):
                raise UserError(f"Mixture.components must be tasks, as in [@a/Task()], got {part}")
        if self.shares is not None:
            count, shares = len(self.components), list(self.shares)
            numbers = [s for s in shares if isinstance(s, int | float) and 0 < s < math.inf]
            if len(shares) != count or numbers != shares:
                raise UserError(
                    f"Mixture.shares must be {count} numbers over 0, one for each component, got "
                    f"{shares}; leave a component out to take it never"
                )
            if self.maximum_records is not None or self.temperature != 1.0:
                raise UserError(
                    "Mixture.maximum_records and Mixture.temperature go with numbers of records; "
                    "leave out Mixture.shares to use them"
                )
        if self.maximum_records is not None and self.maximum_records < 1:
            raise UserError(
                f"Mixture.maximum_records must be at least 1, got {self.maximum_records}"
            )
        if self.temperature < 1:
            raise UserError(f"Mixture.temperature must be at least 1, got {self.temperature}")
        self._check_tasks()

    def _check_tasks(self) -> None:
        first, *others = self.tasks
        for task in others:
            if task.vocabulary.fingerprint != first.vocabulary.fingerprint:
                raise UserError(
                    f"tasks of a mixture must have one vocabulary: {first.name} has "
                    f"{first.vocabulary.fingerprint}, {task.name} has {task.vocabulary.fingerprint}"
                )
        names = [task.name for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"tasks of a mixture must differ in Task.name, but {names.count(twice[0])} are "
                f"{twice[0]!r}; bind a/Task.name for each scope a"
            )

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, those of mixtures within it too."""
        return tuple(task for part in self.components for task in part.tasks)

    @property
    def vocabulary(self) -> Vocabulary:
        """That of all tasks."""
        return self.tasks[0].vocabulary

    def rates(self, split: str) -> tuple[float, ...]:
        """Returns how often each of `tasks` is taken; together they are 1."""
        if self.shares is not None:
            shares = list(self.shares)
        else:
            limit = self.maximum_records or float("inf")
            sizes = [_num_records(part, split) for part in self.components]
            shares = [min(size, limit) ** (1 / self.temperature) for size in sizes]
        return tuple(
            share / sum(shares) * rate
            for share, part in zip(shares, self.components, strict=True)
            for rate in part.rates(split)
        )

    def identity(self, split: str) -> dict[str, str]:
        """Returns what a place in the stream of `split` depends on, to be saved with it."""
        made = {
            # Places are kept in this order.
            "tasks": ", ".join(task.name for task in self.tasks),
            "rates": ", ".join(f"{rate:.9g}" for rate in self.rates(split)),
        }
        for task in self.tasks:
            made |= task.identity(split)
        return made


def _num_records(part: Task | Mixture, split: str) -> int:
    return sum(len(task.source.records(split)) for task in part.tasks)

"""Mixtures: several tasks learned together, each example from one of them."""

import dataclasses
import math
from collections.abc import Sequence

from t5lite.core.errors import UserError
from t5lite.core.fields import field_error, field_name
from t5lite.data.task import Task
from t5lite.data.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Tasks, or mixtures of tasks, each with a share of the examples.

    Args:
        components: tasks and mixtures with the same vocabulary.
        shares: how often to draw each component, relative to the others; None to use the numbers
            of records.
        maximum_records: a component counts at most this many records; None for no limit.
        temperature: numbers of records are raised to the power 1 / temperature, so that small
            components are drawn more often; at least 1.

    Raises:
        UserError: for shares that are not positive, or tasks that do not mix.

    Source: Raffel et al., Exploring the Limits of Transfer Learning, section 3.5.2.
    """

    components: "Sequence[Task | Mixture]"
    shares: Sequence[float] | None = None
    maximum_records: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.components:
            raise field_error(self, "components", "at least one task")
        for part in self.components:
            if not isinstance(part, Task | Mixture):
                owner = field_name(self, "components")
                raise UserError(f"{owner} must be tasks, as in [@a/Task()], got {part}")
        if self.shares is not None:
            self._check_shares(list(self.shares))
        if self.maximum_records is not None and self.maximum_records < 1:
            raise field_error(self, "maximum_records", "at least 1")
        if self.temperature < 1:
            raise field_error(self, "temperature", "at least 1")
        self._check_tasks()

    def _check_shares(self, shares: list[float]) -> None:
        count = len(self.components)
        numbers = [s for s in shares if isinstance(s, int | float) and 0 < s < math.inf]
        if len(shares) != count or numbers != shares:
            rule = f"{count} numbers over 0, one for each component"
            raise field_error(self, "shares", rule, "remove a component instead of a share of 0")
        if self.maximum_records is not None or self.temperature != 1.0:
            raise UserError(
                f"{field_name(self, 'shares')} and {field_name(self, 'maximum_records')} or "
                f"{field_name(self, 'temperature')} are mutually exclusive: these two adjust "
                "numbers of records; remove one of them"
            )

    def _check_tasks(self) -> None:
        first, *others = self.tasks
        for task in others:
            if task.vocabulary.fingerprint != first.vocabulary.fingerprint:
                raise UserError(
                    f"the tasks of a mixture must have the same vocabulary: {first.name} has "
                    f"{first.vocabulary.fingerprint}, {task.name} has {task.vocabulary.fingerprint}"
                )
        names = [task.name for task in self.tasks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"the tasks of a mixture must have different names (Task.name), but "
                f"{names.count(repeated[0])} are {repeated[0]!r}; bind a/Task.name for each scope a"
            )

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, including those of nested mixtures."""
        return tuple(task for part in self.components for task in part.tasks)

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of all tasks."""
        return self.tasks[0].vocabulary

    def rates(self, split: str) -> tuple[float, ...]:
        """Returns the fraction of examples from each of `tasks`; they sum to 1."""
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
        """Returns what the cursors of `split` depend on, to be saved with them."""
        made = {
            # Cursors hold positions in this order.
            "tasks": ", ".join(task.name for task in self.tasks),
            "rates": ", ".join(f"{rate:.9g}" for rate in self.rates(split)),
        }
        for task in self.tasks:
            made |= task.identity(split)
        return made


def _num_records(part: Task | Mixture, split: str) -> int:
    return sum(len(task.source.records(split)) for task in part.tasks)

"""A curriculum by length: short records first."""

import dataclasses
from collections.abc import Sequence

from t5lite.core.fields import MAX_STEPS, field_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthCurriculum:
    """Training begins with the records of few tokens; longer ones are skipped for that epoch.

    Args:
        max_lengths: of each stage, the tokens of the longest record, with inputs and targets
            together, before the objective truncates them. After the last stage all records are
            read.
        boundaries: of each stage, the step before which it ends. A step is an example of a row:
            with packing, a row takes several in a step of training, and stages end sooner.

    Raises:
        UserError: unless both are as many, positive and increasing.

    >>> curriculum = LengthCurriculum(max_lengths=[16, 64], boundaries=[100, 300])
    >>> [curriculum.max_length(step) for step in (0, 99, 100, 300)]
    [16, 16, 64, None]
    """

    max_lengths: Sequence[int]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        for name in ("max_lengths", "boundaries"):
            values = getattr(self, name)
            # gin passes a list, which is not hashable.
            object.__setattr__(self, name, tuple(values))
            is_number = all(type(n) is int and 1 <= n <= MAX_STEPS for n in values)
            if not values or not is_number or sorted(set(values)) != list(values):
                raise field_error(self, name, "integers of at least 1, each over the one before")
        if len(self.max_lengths) != len(self.boundaries):
            rule = f"one for each of the {len(self.max_lengths)} stages of max_lengths"
            raise field_error(self, "boundaries", rule)

    def max_length(self, step: int) -> int | None:
        """Returns the tokens of the longest record at a step; None for any."""
        for boundary, length in zip(self.boundaries, self.max_lengths, strict=True):
            if step < boundary:
                return length
        return None

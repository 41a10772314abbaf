"""When a run ends before its last step: its score has not improved for some evaluations."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from t5lite.core.fields import check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Ends a run whose score has not improved for some evaluations.

    The score is the one by which checkpoints are ranked, `train.keep_highest` or
    `train.keep_lowest`, so the best checkpoint is kept.

    Args:
        evaluations: number of evaluations in a row without an improvement after which the run ends.
        min_improvement: what a score must be better by to count, in its own unit.

    Raises:
        UserError: if a number is out of range.
    """

    evaluations: int = 5
    min_improvement: float = 0.0

    def __post_init__(self) -> None:
        rule = "a whole number from 1"
        check_fields(self, ("evaluations",), rule, lambda n: n >= 1 and n % 1 == 0)
        check_fields(self, ("min_improvement",), "at least 0", lambda x: x >= 0)


class Improvements:
    """The best score of a run so far, and the number of evaluations since then.

    It is saved with every checkpoint, and equal in all processes.

    Args:
        rules: None never ends a run, and saves nothing.
        score: the name of the score.
        saved: of the checkpoint from which the run resumes; None before the first evaluation.
    """

    def __init__(
        self, rules: EarlyStopping | None, score: str | None, saved: Mapping[str, Any] | None
    ) -> None:
        self._rules = rules
        self._score = score
        self._best: float | None = None
        self._best_step = 0
        self._since = 0
        if saved is not None:
            self._best = saved["best"]
            self._best_step = saved["best_step"]
            self._since = saved["evaluations_since"]

    def evaluated(self, step: int, rank: float | None) -> None:
        """Records an evaluation.

        Args:
            rank: a higher one is better; None for a score that is not finite, which is no
                improvement.
        """
        if self._rules is None:
            return
        wanted = -math.inf if self._best is None else self._best + self._rules.min_improvement
        if rank is not None and rank > wanted:
            self._best = rank
            self._best_step = step
            self._since = 0
        else:
            self._since += 1

    @property
    def ended(self) -> str | None:
        """Why the run ends now; None if it does not."""
        if self._rules is None or self._since < self._rules.evaluations:
            return None
        return (
            f"early: {self._score} has not improved in {self._since} evaluations since step "
            f"{self._best_step}"
        )

    def state(self) -> dict[str, Any] | None:
        """Returns what is saved with a checkpoint; None for nothing."""
        if self._rules is None:
            return None
        return {
            "best": self._best,
            "best_step": self._best_step,
            "evaluations_since": self._since,
        }

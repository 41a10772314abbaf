"""The part of a study that engines use, independent of Optuna."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class StoredTrial(Protocol):
    """A trial to run: its number, and the values of what the sweep varies."""

    @property
    def number(self) -> int: ...
    @property
    def params(self) -> dict[str, Any]: ...


@runtime_checkable
class TrialStore(Protocol):
    """The trials of a launch; safe to use in several threads and processes."""

    def take(self, number: int) -> StoredTrial | None:
        """Marks a trial as running and returns it; None if it has ended."""

    def report(self, number: int, step: int, value: float) -> bool:
        """Records an intermediate value, and returns whether to prune the trial."""

    def tell(self, number: int, state: str, value: float | None = None) -> None:
        """Records the end of a trial: "complete" with its value, "pruned" or "failed"."""

    def value_of(self, number: int) -> float | None:
        """Returns the value of a complete trial; None if the trial is not complete."""

    def outcome_of(self, number: int) -> str:
        """Returns how an ended trial ended: "complete", "pruned" or "failed"."""

    def unfinished(self) -> list[int]:
        """Returns the numbers of the trials that have not ended."""

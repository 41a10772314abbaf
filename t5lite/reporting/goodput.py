"""Goodput: for what a run spent its time over all attempts, and how much of it was useful."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.run_directory import read_goodput_lines

# Columns of the table, and the phases of `goodput.jsonl` that each sums up.
KINDS: Mapping[str, Sequence[str]] = {
    "stepping": ("step", "wait"),
    "data": ("data",),
    "compiling": ("compile",),
    "evaluating": ("evaluate",),
    "saving": ("save",),
    "restoring": ("restore",),
    "other": ("other",),
}
# Steps that were repeated because the run was killed after its latest checkpoint.
LOST = "lost"
# What repeated steps cost.
REPEATED = ("stepping", "data")


@dataclasses.dataclass(frozen=True)
class Goodput:
    """The seconds of a run by kind, over all attempts; those of repeated steps count as lost."""

    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        """All seconds from the start of training, in all attempts."""
        return sum(self.seconds.values())

    @property
    def fraction(self) -> float:
        """The share of the time that was spent in steps which were kept."""
        return self.seconds["stepping"] / max(self.total, 1e-9)


def read_goodput(model_dir: pathlib.Path) -> Goodput | None:
    """Returns what a run recorded; None if it recorded nothing.

    An attempt that was killed counts up to its last record.
    """
    starts = _starts(sorted(read_goodput_lines(model_dir), key=lambda line: line["attempt"]))
    if not starts:
        return None
    total = dict.fromkeys([*KINDS, LOST], 0.0)
    # From the last start to the first: the step from which a later one repeated the steps.
    restart: float = float("inf")
    for before, lines in reversed(starts):
        kept = [line for line in lines if line["step"] <= restart]
        until_restart = _by_kind(kept[-1]) if kept else before
        for kind, seconds in _by_kind(lines[-1]).items():
            repeated = seconds - until_restart[kind] if kind in REPEATED else 0.0
            total[kind] += seconds - before[kind] - repeated
            total[LOST] += repeated
        restart = min(restart, lines[0]["step"])
    return Goodput(total)


def _starts(
    lines: Sequence[dict[str, Any]],
) -> list[tuple[dict[str, float], list[dict[str, Any]]]]:
    """Returns the records from each start on, and the seconds of its attempt before them.

    An attempt starts once more when its run returns to an earlier checkpoint.
    """
    starts: list[tuple[dict[str, float], list[dict[str, Any]]]] = []
    latest = None
    for line in lines:
        if latest is None or line["attempt"] != latest["attempt"]:
            starts.append((dict.fromkeys(KINDS, 0.0), []))
        elif line["step"] < latest["step"]:
            starts.append((_by_kind(latest), []))
        starts[-1][1].append(line)
        latest = line
    return starts


def _by_kind(line: Mapping[str, Any]) -> dict[str, float]:
    seconds = line["seconds"]
    return {
        kind: sum(seconds.get(phase, 0.0) for phase in phases) for kind, phases in KINDS.items()
    }

"""`goodput.jsonl`: for what a run spends its time, in every attempt."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import jax

from t5lite.core.ending import recorded_at_end
from t5lite.core.run_directory import GOODPUT, append_record, open_attempt
from t5lite.training.phases import Phases


@contextlib.contextmanager
def goodput_record(phases: Phases, model_dir: pathlib.Path) -> Iterator[Callable[[int], None]]:
    """Yields a function that records, at a step, the seconds of each phase since the beginning.

    It appends a line, which a later kill does not lose; the last one is appended at the end, even
    if `end_process` ends the process. Only the first process records.

    Args:
        model_dir: of a run, whose attempt is open; without an attempt nothing is recorded.
    """
    number = open_attempt(model_dir) if jax.process_index() == 0 else None
    began = phases.seconds()
    latest = 0

    def record(step: int) -> None:
        nonlocal latest
        latest = step
        if number is not None:
            spent = {name: round(s - began[name], 3) for name, s in phases.seconds().items()}
            append_record(model_dir / GOODPUT, attempt=number, step=step, seconds=spent)

    with recorded_at_end(lambda outcome, error: record(latest)):
        try:
            yield record
        finally:
            # If the disk is full, that was the error of what failed first.
            with contextlib.suppress(OSError):
                record(latest)

"""The watchdog: ends a run one of whose phases takes longer than its limit."""

import dataclasses
import faulthandler
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from t5lite.core.ending import end_process
from t5lite.core.fields import check_fields
from t5lite.core.run_directory import STALLED_EXIT, UNAVAILABLE_EXIT
from t5lite.data.batching.stream import lost_worker, running_workers

# How often the watchdog looks: at most so many seconds apart, and so many times within a limit.
LONGEST_TICK_SECONDS = 5.0
TICKS_OF_A_LIMIT = 20
# Of waiting for a batch, after which a data worker that has died is noticed here. Grain notices it
# within two seconds, unless the worker was killed while it sent a batch.
DEAD_WORKER_SECONDS = 10.0
# The phases of training, and what each is, for messages.
PHASES = {
    "restore": "restoring a checkpoint or initialising the state",
    "compile": "compiling the train step",
    "data": "waiting for a batch",
    "step": "starting a step",
    "wait": "waiting for a step",
    "evaluate": "an evaluation",
    "save": "saving a checkpoint",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watchdog:
    """Limits of the phases of training, in seconds; a phase that takes longer ends the run.

    The run then prints the Python stacks of all threads, records its outcome as "stalled", and
    exits with status 70. Time in which the whole process was suspended does not count.

    Args:
        data_seconds: of waiting for a batch.
        step_seconds: of a step, or of waiting for one.
        save_seconds: of saving a checkpoint, with the wait for the one before it.
        restore_seconds: of restoring a checkpoint.
        compile_seconds: of compiling the train step; None for no limit.
        evaluate_seconds: of one evaluation, with its compilation; None for no limit.

    Raises:
        UserError: if a limit is not over 0.
    """

    data_seconds: float | None = 1800.0
    step_seconds: float | None = 1800.0
    save_seconds: float | None = 3600.0
    restore_seconds: float | None = 3600.0
    compile_seconds: float | None = None
    evaluate_seconds: float | None = None

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(self)]
        check_fields(self, names, "over 0", lambda seconds: seconds > 0)

    @property
    def limits(self) -> dict[str, tuple[str, float]]:
        """The binding and the limit of each phase that has one."""
        fields = {"wait": "step_seconds"} | {
            field.name.removesuffix("_seconds"): field.name for field in dataclasses.fields(self)
        }
        limits = {phase: (name, getattr(self, name)) for phase, name in fields.items()}
        return {phase: limit for phase, limit in limits.items() if limit[1] is not None}


def watch(
    phase_since: Callable[[], tuple[str, float]],
    limits: Mapping[str, tuple[str, float]],
    wait: Callable[[float], bool],
) -> None:
    """Ends the process once a phase has taken longer than its limit.

    Args:
        phase_since: returns the current phase and when it began, the same object until it ends.
        limits: the binding and the seconds of each phase that has a limit.
        wait: waits for so many seconds, and returns whether to return.
    """
    shortest = min((seconds for _, seconds in limits.values()), default=LONGEST_TICK_SECONDS)
    tick = min(shortest / TICKS_OF_A_LIMIT, LONGEST_TICK_SECONDS)
    latest = phase_since()
    elapsed = 0.0
    looked = time.monotonic()
    workers: set[Any] = set()
    while not wait(tick):
        now = time.monotonic()
        current = phase_since()
        # A longer tick is one in which the process did not run.
        elapsed = elapsed + min(now - looked, 2 * tick) if current is latest else 0.0
        latest = current
        looked = now
        workers.update(running_workers())
        if current[0] == "data" and elapsed > DEAD_WORKER_SECONDS:
            for status in {worker.exitcode for worker in workers} - {None, 0}:
                end_process("unavailable", str(lost_worker(status)), UNAVAILABLE_EXIT)
        if current[0] in limits and elapsed > limits[current[0]][1]:
            _stop(current[0], *limits[current[0]])


def _stop(phase: str, field: str, limit: float) -> None:
    # To the file descriptor: sys.stderr may be locked by a thread that waits.
    faulthandler.dump_traceback(file=2, all_threads=True)
    causes = "".join(f"; {cause}" for cause in _stopped_workers())
    end_process(
        "stalled",
        f"{PHASES[phase]} took longer than {limit:g} seconds (Watchdog.{field}){causes}; restart "
        "to resume from the latest checkpoint, or raise the limit",
        STALLED_EXIT,
    )


def _stopped_workers() -> list[str]:
    """Returns which data workers are stopped, where the system says so."""
    found = []
    for child in running_workers():
        status = pathlib.Path(f"/proc/{child.pid}/status")
        if status.exists() and "\nState:\tT" in status.read_text():
            found.append(f"data worker {child.pid} is stopped")
    return found

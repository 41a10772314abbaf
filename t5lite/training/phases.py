"""The phases of training: the seconds spent in each, and their watchdog."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol, TypeVar, runtime_checkable

from t5lite.training.watchdog import PHASES, Watchdog, watch

# Everything that is in no phase: starting, logging, closing.
OTHER = "other"


@runtime_checkable
class _Closable(Protocol):
    def close(self) -> None: ...


_C = TypeVar("_C", bound=_Closable)


class Phases:
    """The seconds that this process has spent in each phase. Calling it enters a phase.

    NOTE: it reads the monotonic clock, which nobody can set.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys((OTHER, *PHASES), 0.0)
        self._since = (OTHER, time.monotonic())

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time inside the context for `phase`, and not for the phase around it."""
        outer = self._switch(phase)
        try:
            yield
        finally:
            self._switch(outer)

    @contextlib.contextmanager
    def closing(self, phase: str, resource: _C) -> Iterator[_C]:
        """Yields a resource, which is closed in `phase`."""
        try:
            yield resource
        finally:
            with self(phase):
                resource.close()

    def _switch(self, phase: str) -> str:
        now = time.monotonic()
        ended, began = self._since
        self._seconds[ended] += now - began
        self._since = (phase, now)
        return ended

    def since(self) -> tuple[str, float]:
        """Returns the current phase and when it began, the same object until it ends."""
        return self._since

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each phase so far."""
        phase, began = self._since
        return self._seconds | {phase: self._seconds[phase] + time.monotonic() - began}


@contextlib.contextmanager
def watched_phases(watchdog: Watchdog | None) -> Iterator[Phases]:
    """Yields phases, which `watchdog` watches inside the context; None for no limits."""
    phases = Phases()
    done = threading.Event()
    if watchdog is not None and watchdog.limits:
        arguments = (phases.since, watchdog.limits, done.wait)
        threading.Thread(target=watch, args=arguments, name="watchdog", daemon=True).start()
    try:
        yield phases
    finally:
        done.set()

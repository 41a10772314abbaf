"""Signals that ask training to stop: SIGTERM, as schedulers send it, and Ctrl-C."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Yields what says, after each step, whether to stop there; in all processes the same.

    Where there are several, JAX tells the others that one got the signal, and they agree on a step.
    A process on its own needs no more than a flag, and none of JAX's service, which would end it
    once it has been suspended for longer than a heartbeat.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    # Signals come to the main thread only, and there only can be asked for.
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.getsignal(number) for number in numbers]

    def ask(number: int, frame: object) -> None:
        asked.set()
        if number == signal.SIGINT:
            print("t5lite: saving; Ctrl-C again to stop at once", file=sys.stderr)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield lambda step: asked.is_set()
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)

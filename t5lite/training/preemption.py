"""Signals that ask training to stop: SIGTERM, as schedulers send it, and Ctrl-C."""

import contextlib
import os
import signal
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

    Signals often come several at a time, so a handler may be interrupted by itself: it takes no
    lock, as `threading.Event` does, and does not print.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = False
    # Signals come to the main thread only, and there only can be asked for.
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.getsignal(number) for number in numbers]

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        if number == signal.SIGINT:
            os.write(2, b"t5lite: saving; Ctrl-C again to stop at once\n")
            signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield lambda step: asked
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)

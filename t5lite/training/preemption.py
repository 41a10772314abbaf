"""Signals that ask training to stop: SIGTERM, which schedulers send, and Ctrl-C."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Yields a function that returns, after each step, whether to stop; equal in all processes.

    With several processes, JAX notifies all of them when one receives the signal, and they agree on
    a step. A single process needs only a flag, and no service of JAX, which would end a process
    that was suspended for longer than a heartbeat.

    Until the function is called for the first time there is nothing to save, and Ctrl-C interrupts
    at once. SIGTERM then still waits for the first step, as a scheduler allows.

    Signals often arrive several at a time, so that a handler can interrupt itself: it takes no
    lock, as `threading.Event` would, and does not print.
    """
    if jax.process_count() > 1:
        # JAX takes numbers that only grow, and a run that returns to a checkpoint repeats steps.
        calls = itertools.count()
        yield lambda step: bool(multihost_utils.reached_preemption_sync_point(next(calls)))
        return
    requested = False
    has_stepped = False
    # Only the main thread receives signals and can install handlers.
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.getsignal(number) for number in numbers]

    def request_stop(number: int, frame: object) -> None:
        nonlocal requested
        if number == signal.SIGINT and not has_stepped:
            raise KeyboardInterrupt
        requested = True
        if number == signal.SIGINT:
            os.write(2, b"t5lite: saving; Ctrl-C again to stop at once\n")
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def should_stop(step: int) -> bool:
        nonlocal has_stepped
        has_stepped = True
        return requested

    for number in numbers:
        signal.signal(number, request_stop)
    try:
        yield should_stop
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)

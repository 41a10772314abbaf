"""Signals that ask training to stop: SIGTERM, which schedulers send, and Ctrl-C."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax

from t5lite.training.agreed_stop import AgreedStop


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Yields a function that returns, after each step, whether to stop; equal in all processes.

    With several processes it is enough that one receives the signal: they agree on a step. All of
    them must enter this context, and call the function after the same steps.

    Until the function is called for the first time there is nothing to save, and Ctrl-C interrupts
    at once. SIGTERM then still waits for the first step, as a scheduler allows.

    Signals often arrive several at a time, so that a handler can interrupt itself: it takes no
    lock, as `threading.Event` would, and does not print.
    """
    requested = False
    has_stepped = False
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

    with contextlib.ExitStack() as stack:
        agreed = None
        if jax.process_count() > 1:
            agreed = stack.enter_context(contextlib.closing(AgreedStop()))

        def should_stop(step: int) -> bool:
            nonlocal has_stepped
            has_stepped = True
            return requested if agreed is None else agreed.is_last_step(requested)

        # Only the main thread receives signals and can install handlers.
        if threading.current_thread() is threading.main_thread():
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, request_stop)
                stack.callback(signal.signal, number, handler)
        yield should_stop

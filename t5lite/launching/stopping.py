"""Stop requests by SIGTERM and Ctrl-C."""

import queue
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def until_stopped(work: Callable[[threading.Event], _Result]) -> _Result:
    """Returns `work(stopping)`; SIGTERM and Ctrl-C set the event `stopping`."""
    stopping = threading.Event()
    # NOTE: a handler that set the event itself could deadlock: another signal, or the work, may
    # hold the lock of the event at that moment. Putting into this queue takes no lock.
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def listen() -> None:
        signals.get()
        stopping.set()

    threading.Thread(target=listen, daemon=True).start()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda signum, frame: signals.put(signum))
    try:
        return work(stopping)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

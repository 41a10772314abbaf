"""Ending the process at once, from any thread, with the records of its attempts complete.

For what the main thread cannot handle, because it waits for something that never happens.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

# Called with the outcome and the error, in the reverse order of their registration.
_at_end: list[Callable[[str, str], None]] = []
# Only the first thread that ends the process does.
_ending = threading.Lock()
# A file system that does not answer must not keep the process alive.
RECORD_SECONDS = 20.0


@contextlib.contextmanager
def recorded_at_end(record: Callable[[str, str], None]) -> Iterator[None]:
    """Calls `record(outcome, error)` if `end_process` ends the process inside the context."""
    _at_end.append(record)
    try:
        yield
    finally:
        _at_end.remove(record)


def end_process(outcome: str, error: str, status: int) -> NoReturn:
    """Records the outcome, prints the error on one line, and exits without any clean-up.

    Args:
        outcome: one of `run_directory.OUTCOMES`.
        error: why, for the user.
        status: the exit status.
    """
    with _ending:
        threading.Timer(RECORD_SECONDS, os._exit, (status,)).start()
        # Not through sys.stderr, whose lock another thread may hold.
        os.write(2, f"t5lite: {error}\n".encode())
        for record in reversed(_at_end):
            with contextlib.suppress(OSError):
                record(outcome, error)
        # Data workers do not notice the end of this process.
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(status)

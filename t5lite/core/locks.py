"""Lock files; no other module calls flock. A lock ends with the process that holds it."""

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from t5lite.core.errors import Unavailable

LOCK_ATTEMPTS = 5


def try_lock(file: IO[Any]) -> bool:
    """Locks an open, writable file until it is closed, and returns whether that was possible."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(file: IO[Any]) -> None:
    """Locks an open, writable file until it is closed, as soon as no other process holds it."""
    fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def hold_lock(path: pathlib.Path, conflict: Callable[[str], str]) -> Iterator[None]:
    """Holds the lock file `path`, which names its holder as "PID on HOST".

    Args:
        conflict: returns the error message for another holder, "PID on HOST".

    Raises:
        Unavailable: if another process holds the lock.
    """
    with path.open("a+") as file:
        for remaining in reversed(range(LOCK_ATTEMPTS)):
            if try_lock(file):
                break
            # A process that only tests the lock holds it for a moment.
            if not remaining:
                file.seek(0)
                raise Unavailable(conflict(file.read()))
            time.sleep(0.05)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def lock_holder(path: pathlib.Path) -> str | None:
    """Returns the content of a lock file that a process holds, and None if no process holds it."""
    try:
        # Opened for writing: over NFS only a writable file can be locked.
        with path.open("r+") as file:
            return None if try_lock(file) else file.read()
    except FileNotFoundError:
        return None

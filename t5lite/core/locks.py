"""Lock files; no other module calls flock. A lock ends with the process that holds it."""

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from t5lite.core.errors import Unavailable, errors_named

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


def is_file_of(path: pathlib.Path, file: IO[Any]) -> bool:
    """Whether an open file still has that path, and was not removed or replaced meanwhile."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def hold_lock(path: pathlib.Path, conflict: Callable[[str], str]) -> Iterator[None]:
    """Holds the lock file `path`, which names its holder as "PID on HOST".

    Args:
        conflict: returns the error message for another holder, "PID on HOST".

    Raises:
        Unavailable: if another process holds the lock.
    """
    for remaining in reversed(range(LOCK_ATTEMPTS)):
        with path.open("a+") as file:
            # Its last holder may have renamed or removed it.
            if try_lock(file) and is_file_of(path, file):
                with errors_named(path):
                    file.truncate(0)
                    file.write(f"{os.getpid()} on {socket.gethostname()}")
                    file.flush()
                yield
                return
            if not remaining:
                file.seek(0)
                raise Unavailable(conflict(file.read()))
        # A process that only tests the lock holds it for a moment.
        time.sleep(0.05)


def lock_holder(path: pathlib.Path) -> str | None:
    """Returns the content of a lock file that a process holds, and None if no process holds it."""
    try:
        # Opened for writing: over NFS only a writable file can be locked.
        with path.open("r+") as file:
            return None if try_lock(file) else file.read()
    except FileNotFoundError:
        return None

"""The lock of the process that runs or submits a launch, and a signal to that process."""

import contextlib
import os
import pathlib
import signal
import socket
from collections.abc import Iterator

from t5lite.core.errors import UserError
from t5lite.core.locks import hold_lock, lock_holder
from t5lite.launching.launch import launch_reference
from t5lite.launching.launch_files import LAUNCH_LOCK


@contextlib.contextmanager
def hold_launch(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from running or submitting a launch while the context is open.

    Raises:
        Unavailable: if another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reference = launch_reference(folder)
    with hold_lock(
        folder / LAUNCH_LOCK,
        lambda holder: (
            f"{folder.name} is being run by process {holder}; show it with `t5lite launch status "
            f"{reference}`, end it with `t5lite launch cancel {reference}`"
        ),
    ):
        yield


def signal_launcher(folder: pathlib.Path) -> bool:
    """Asks the process that runs a launch to save and stop; returns whether there is one.

    Raises:
        UserError: if it runs on another machine.
    """
    holder = lock_holder(folder / LAUNCH_LOCK)
    if holder is None:
        return False
    pid, _, host = holder.partition(" on ")
    if not pid.isdigit():
        raise UserError(f"{folder.name} is just starting; cancel it again")
    if host != socket.gethostname():
        raise UserError(f"{folder.name} runs on {host}; cancel it there")
    try:
        os.kill(int(pid), signal.SIGTERM)
    except ProcessLookupError:
        # It has ended meanwhile.
        return False
    return True

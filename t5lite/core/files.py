"""Writing files that others rely on."""

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

from t5lite.core.errors import UserError


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that is there whole or, where that fails, as it was before."""
    replacement = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    replacement.write_text(text)
    replacement.replace(path)


@contextlib.contextmanager
def held(path: pathlib.Path, taken: Callable[[str], str]) -> Iterator[None]:
    """Holds a lock file, which tells who has it, as long as this process lives.

    Args:
        taken: from who has it, "PID on HOST", to what the user is told.

    Raises:
        UserError: where another process holds it.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(taken(file.read())) from error
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield

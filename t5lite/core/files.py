"""Writing files that others rely on."""

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator

from t5lite.core.errors import Unavailable, UserError

LOOKS = 5


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that is there whole or, where that fails, as it was before."""
    replacement = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with replacement.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    replacement.replace(path)


def local_folder(owner: str, folder: str) -> pathlib.Path:
    """Returns a folder of this machine.

    Raises:
        UserError: where `owner` names none, or an address instead.
    """
    if not folder or "://" in folder:
        raise UserError(f"{owner} must be a local folder, got {folder!r}")
    return pathlib.Path(folder).expanduser()


@contextlib.contextmanager
def held(path: pathlib.Path, taken: Callable[[str], str]) -> Iterator[None]:
    """Holds a lock file, which tells who has it, as long as this process lives.

    Args:
        taken: from who has it, "PID on HOST", to what the user is told.

    Raises:
        Unavailable: where another process holds it.
    """
    with path.open("a+") as file:
        for left in reversed(range(LOOKS)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                # Perhaps somebody looks whether it is held.
                if not left:
                    file.seek(0)
                    raise Unavailable(taken(file.read())) from error
                time.sleep(0.05)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield

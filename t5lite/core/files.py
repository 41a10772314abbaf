"""Atomic writes, and names of files and folders of this machine."""

import os
import pathlib
from typing import IO

from t5lite.core.errors import UserError, errors_named
from t5lite.core.locks import is_file_of, wait_for_lock


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file with `text`; if writing fails, the old file stays as it was.

    Writers of the same file take turns. One that is killed leaves `NAME.tmp` to the next.
    """
    replacement = path.with_name(f"{path.name}.tmp")
    with errors_named(path), _open_locked(replacement) as file:
        file.truncate(0)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        # Before the lock is released: until then no other writer takes the file.
        replacement.replace(path)


def _open_locked(path: pathlib.Path) -> IO[str]:
    while True:
        file = path.open("a")
        wait_for_lock(file)
        # The writer that held the lock has renamed the file, unless it was killed.
        if is_file_of(path, file):
            return file
        file.close()


def is_utf8(name: str) -> bool:
    """Whether a file name is text; Python has surrogates for bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def local_folder(owner: str, folder: str) -> pathlib.Path:
    """Returns a folder of this machine, `~` expanded.

    Raises:
        UserError: for an empty name or a URL, naming `owner`.
    """
    if not folder or "://" in folder:
        raise UserError(f"{owner} must be a local folder, got {folder!r}")
    # NOTE: pathlib's expanduser fails for `~nobody`.
    expanded = os.path.expanduser(folder)
    if expanded.startswith("~"):
        raise UserError(f"{owner} must be a folder of a known user, got {folder!r}")
    return pathlib.Path(expanded)

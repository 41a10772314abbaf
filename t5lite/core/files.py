"""Atomic writes, and folders of this machine."""

import os
import pathlib

from t5lite.core.errors import UserError


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file with `text`; if writing fails, the old file stays as it was."""
    replacement = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with replacement.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    replacement.replace(path)


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

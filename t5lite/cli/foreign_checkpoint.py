"""Hugging Face folders as `--checkpoint`: small ones are converted on first use."""

import contextlib
import hashlib
import json
import os
import pathlib
import sys

import jax

from t5lite.cli.arguments import parse_arguments
from t5lite.core.errors import UserError
from t5lite.core.locks import wait_for_lock

# Folders up to this size are converted when a command names them.
MAX_BYTES = 2 * 10**9


def is_foreign(folder: pathlib.Path) -> bool:
    """Whether a directory is a checkpoint of Hugging Face."""
    return (folder / "config.json").is_file()


def converted(folder: pathlib.Path) -> pathlib.Path:
    """Returns the conversion of a Hugging Face folder, which is made once and kept.

    It is kept in ~/.cache/t5lite (or XDG_CACHE_HOME) under a name that changes with the files.

    Raises:
        UserError: naming the command to run first, if the folder is large or several processes
            share the work.
    """
    files = sorted(path for path in folder.absolute().iterdir() if path.is_file())
    size = sum(path.stat().st_size for path in files)
    if size > MAX_BYTES or jax.process_count() > 1:
        raise UserError(
            f"--checkpoint={folder} is a Hugging Face folder; convert it once: t5lite convert "
            f"--input={folder} --output={folder}-t5lite, and use that"
        )
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    output = cache / "t5lite" / "converted" / f"{folder.name}-{digest}"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_name(f"{output.name}.lock").open("w") as lock:
        # Another process may be converting the same folder.
        wait_for_lock(lock)
        if output.exists():
            return output
        from t5lite.cli.convert import convert_command

        flags, _, bindings = parse_arguments("convert", [f"--input={folder}", f"--output={output}"])
        # Results go to the standard output.
        with contextlib.redirect_stdout(sys.stderr):
            convert_command(flags, bindings)
    return output

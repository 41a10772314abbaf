"""Writing files that others rely on."""

import os
import pathlib


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that is there whole or, where that fails, as it was before."""
    replacement = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    replacement.write_text(text)
    replacement.replace(path)

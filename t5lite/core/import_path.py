"""Where modules are imported from: the user's own are found, and hide no others.

`add_own_modules` is the one way by which a user's modules become importable, besides PYTHONPATH.
"""

import contextlib
import os
import sys
from collections.abc import Iterator


def add_own_modules(folder: str) -> None:
    """Makes the modules of a folder importable that have no name of an installed one."""
    if folder not in sys.path:
        sys.path.append(folder)


@contextlib.contextmanager
def safe_children() -> Iterator[None]:
    """Starts processes of `multiprocessing` that do not import from the working directory first.

    Python does otherwise, where a file such as `socket.py` beside the user's run files would
    replace a module of the standard library.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before

"""A folder in memory: thousands of small files are written."""

import pathlib
import tempfile
from collections.abc import Iterator

import pytest

MEMORY = pathlib.Path("/dev/shm")


@pytest.fixture
def memory_dir(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder in memory if this system has such a file system, else on the disk."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as folder:
        yield pathlib.Path(folder)

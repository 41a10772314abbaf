"""Files that are replaced as a whole."""

import concurrent.futures
import signal
import subprocess
import sys

import pytest

from t5lite.core.files import write_atomically

# Writes as a process that is killed before the file gets its name.
KILLED_WRITER = """
import os, pathlib, signal, sys
from t5lite.core.files import write_atomically
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(pathlib.Path(sys.argv[1]), "longer than what the next one writes")
"""


def test_what_a_killed_writer_leaves_is_gone_after_the_next(tmp_path):
    path = tmp_path / "good.json"
    write_atomically(path, "old")
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)])
        assert killed.returncode == -signal.SIGKILL
        assert path.read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 2
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_the_same_file_take_turns(tmp_path):
    path = tmp_path / "launch.json"
    texts = [str(number) * (10_000 + number) for number in range(8)]

    def write(text):
        for _ in range(20):
            write_atomically(path, text)
            assert path.read_text() in texts

    with concurrent.futures.ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(write, texts))
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_names_the_file_and_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "config.gin"
    write_atomically(path, "old")

    def fail(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left on device: .*config.gin"):
        write_atomically(path, "new")
    assert path.read_text() == "old"

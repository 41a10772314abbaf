"""Ending a process from another thread than the main one."""

import subprocess
import sys

from t5lite.core.run_directory import outcomes, read_attempts
from tests import small

# The main thread never returns, and neither does a process that it started.
PROGRAM = """
import multiprocessing
import pathlib
import sys
import threading
import time

from t5lite.core.ending import end_process
from t5lite.core.run_directory import attempt


def end():
    end_process("stalled", "no step", 70)


if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1e6,), daemon=True)
    child.start()
    print(child.pid, flush=True)
    with attempt(pathlib.Path(sys.argv[1]), ["train"]):
        for _ in range(3):
            threading.Thread(target=end).start()
        time.sleep(1e6)
"""


def test_a_process_ends_with_its_outcome_recorded_and_no_children(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.run(
        [sys.executable, tmp_path / "program.py", tmp_path],
        capture_output=True,
        text=True,
        timeout=small.PATIENCE,
    )
    assert (process.returncode, process.stderr) == (70, "t5lite: no step\n")
    assert outcomes(tmp_path)["stalled"] == 1
    (end,) = [line for line in read_attempts(tmp_path) if "outcome" in line]
    assert end["error"] == "no step"
    assert end["seconds"] >= 0
    assert not _is_running(int(process.stdout))


def _is_running(pid):
    stat = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return stat.stdout.strip()[:1] not in ("", "Z")

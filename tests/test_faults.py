"""The tool that makes calls fail, tried on small processes."""

import signal
import socket
import subprocess
import sys

import pytest

from tests.faults import Fault, calls_in, needs_preload, preloaded

pytestmark = needs_preload

WRITES = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
for number in range(3):
    with (folder / "lines").open("a") as file:
        file.write(f"line {number}\\n")
(folder / "lines").rename(folder / "renamed")
with (folder / "renamed").open("rb+") as file:
    os.fsync(file.fileno())
    file.truncate(4)
(folder / "made").mkdir()
(folder / "made").rmdir()
os.unlink(folder / "renamed")
"""


@pytest.fixture
def start(faults_library, tmp_path):
    """Runs a program with a fault on files in `folder`."""
    (tmp_path / "folder").mkdir()

    def run(program, **fault):
        fault = Fault(**{"under": tmp_path / "folder", **fault})
        environment = preloaded(faults_library) | fault.environment(tmp_path / "log")
        command = [sys.executable, "-S", "-c", program, str(fault.under)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def seen(tmp_path):
    return [(call.kind, call.path.rpartition("/")[2]) for call in calls_in(tmp_path / "log")]


def test_every_change_is_counted_in_order(start, tmp_path):
    ended = start(WRITES)
    assert ended.returncode == 0, ended.stderr
    assert seen(tmp_path) == [
        *(("create", "lines"), ("write", "lines")) * 3,
        ("rename", "lines"),
        ("sync", "renamed"),
        ("write", "renamed"),
        ("create", "made"),
        ("remove", "made"),
        ("remove", "renamed"),
    ]


def test_only_files_under_the_directory_count(start, tmp_path):
    (tmp_path / "folder2").mkdir()
    ended = start(f"open({str(tmp_path / 'folder2' / 'x')!r}, 'w').write('x')")
    assert ended.returncode == 0, ended.stderr
    assert seen(tmp_path) == []


def test_threads_and_children_count_together(start, tmp_path):
    ended = start("""
import multiprocessing, pathlib, subprocess, sys, threading
path = pathlib.Path(sys.argv[1])
work = lambda: [open(path / str(n), "w").close() for n in range(5)]
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
forked = multiprocessing.get_context("fork").Process(target=work)
forked.start()
forked.join()
subprocess.run([sys.executable, "-S", "-c", "import sys; open(sys.argv[1], 'w')", path / "last"])
""")
    assert ended.returncode == 0, ended.stderr
    calls = calls_in(tmp_path / "log")
    assert [call.number for call in calls] == list(range(1, 22))
    assert len({call.process for call in calls}) == 3
    assert calls[-1].path.endswith("/folder/last")


# What each change of `WRITES` leaves behind.
LINES = ["line 0\n", "line 0\nline 1\n", "line 0\nline 1\nline 2\n"]
LEFT = [
    {},
    {"lines": ""},
    *({"lines": text} for text in LINES[:2] for _ in range(2)),
    {"lines": LINES[2]},
    *({"renamed": LINES[2]} for _ in range(2)),
    {"renamed": "line"},
    {"renamed": "line", "made": None},
    {"renamed": "line"},
]


@pytest.mark.parametrize("at", range(1, len(LEFT) + 1))
def test_a_kill_comes_before_the_call(at, start, tmp_path):
    ended = start(WRITES, at=at)
    assert ended.returncode == -signal.SIGKILL
    assert len(seen(tmp_path)) == at
    files = (tmp_path / "folder").iterdir()
    assert {p.name: p.read_text() if p.is_file() else None for p in files} == LEFT[at - 1]


def test_a_torn_write_leaves_half_of_its_data(start, tmp_path):
    assert start(WRITES, at=2, calls=["write"], torn=True).returncode == -signal.SIGKILL
    assert (tmp_path / "folder" / "lines").read_text() == "line 0\nlin"


def test_a_call_fails_once_or_from_then_on(start, tmp_path):
    program = """
import pathlib, sys
for number in range(4):
    try:
        pathlib.Path(sys.argv[1], str(number)).write_text("x")
    except OSError as error:
        print(number, error.strerror)
"""
    full = "No space left on device"
    once = start(program, calls=["write"], at=2, then="ENOSPC")
    assert once.stdout == f"1 {full}\n"
    assert start(program, calls=["write"], at=3, then="ENOSPC", lasting=True).stdout == (
        f"2 {full}\n3 {full}\n"
    )
    assert start(program, calls=["create"], at=4, then="EIO").stdout == "3 Input/output error\n"


@pytest.mark.parametrize(
    ("calls", "statement"),
    [
        ("rename", "os.rename(path, path + '2')"),
        ("sync", "os.fsync(os.open(path, os.O_RDWR))"),
        ("remove", "os.unlink(path)"),
        ("read", "open(path).read()"),
        ("create", "os.mkdir(path + '2')"),
        ("write", "os.truncate(path, 0)"),
    ],
)
def test_every_kind_of_call_fails(calls, statement, start, tmp_path):
    path = tmp_path / "folder" / "file"
    path.write_text("content")
    ended = start(f"import os; path = {str(path)!r}; {statement}", calls=[calls], at=1, then="EIO")
    assert ended.stderr.splitlines()[-1].startswith("OSError: [Errno 5] Input/output error")
    assert path.read_text() == "content"


def test_a_network_call_fails(start, tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        program = f"""
import socket
with socket.create_connection(("localhost", {server.getsockname()[1]})) as peer:
    peer.sendall(b"one")
    peer.sendall(b"two")
"""
        ended = start(program, calls=["network"], at=3, then="ECONNRESET")
        peer, _ = server.accept()
        with peer:
            assert peer.recv(10) == b"one"
    assert "ConnectionResetError" in ended.stderr
    assert [c.function for c in calls_in(tmp_path / "log")] == ["connect", "send", "send"]


def test_a_signal_is_sent_after_a_delay(start):
    program = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{time.monotonic() - written:.3f}"))
with open(sys.argv[1] + "/x", "w") as file:
    file.write("x")
    file.flush()
    written = time.monotonic()
    signal.pause()
"""
    ended = start(program, calls=["write"], at=1, then="SIGTERM", delay=0.2)
    assert ended.returncode == 1
    assert 0.19 < float(ended.stderr) < 10

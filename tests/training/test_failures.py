"""What docs/long_runs.md states of signals, data workers and the clock.

`test_kills` covers kills and full disks, and `tests/parallel/test_peers` the processes of a job.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time

import pytest

from t5lite.core.run_directory import outcomes, read_attempts
from t5lite.reporting.goodput import read_goodput
from tests.faults import Fault, calls_in, needs_preload, preloaded
from tests.forks import ForkServer
from tests.kills import Bench, Setting, complaints

pytestmark = [pytest.mark.proof, needs_preload]
TEN_STEPS = Setting(run_file="tests/ten_steps.gin")
FIVE_OF_THEM = Setting(run_file="tests/ten_steps.gin", flags=("--gin.train.total_steps=5",))
CLOCK = pathlib.Path(__file__).parent.parent / "moving_clock.c"


@pytest.fixture(scope="module")
def server(one_device, faults_library, tmp_path_factory):
    environment = one_device | preloaded(faults_library)
    with contextlib.closing(ForkServer(tmp_path_factory.mktemp("outputs"), environment)) as made:
        yield made


@pytest.fixture(scope="module")
def bench(server, tmp_path_factory):
    return Bench(TEN_STEPS, server, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(bench):
    """What an uninterrupted run records."""
    return bench.whole()[0]


@pytest.fixture(scope="module")
def half(server, tmp_path_factory):
    """The run after five steps."""
    folder = tmp_path_factory.mktemp("half")
    assert Bench(FIVE_OF_THEM, server, folder).attempt(folder / "run")[0].status == 0
    return folder / "run"


def assert_ended(ended, status, message, model_dir, **counts):
    """Checks the status, that the command printed one line, and the counts of outcomes."""
    assert ended.status == status, ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("t5lite: ")]
    assert len(lines) == 1, ended.err
    assert re.search(message, lines[0])
    assert {name: count for name, count in outcomes(model_dir).items() if count} == counts


def test_sigterm_during_a_save_saves_and_stops(bench, whole, tmp_path):
    fault = Fault(under=tmp_path / "checkpoints", calls=("write",), at=3, then="SIGTERM")
    (ended,) = bench.attempt(tmp_path, fault)
    assert len(calls_in(bench.log)) > 3
    assert_ended(ended, 42, r"stopped at step \d+, which is saved", tmp_path, preempted=1)
    assert bench.resume(tmp_path, whole) == []


@pytest.mark.parametrize(
    ("call", "counts"),
    # The first call creates the lock, before the attempt begins; the other one writes `config.gin`.
    [("create", {}), ("rename", {"killed": 1})],
    ids=["lock", "config"],
)
def test_ctrl_c_at_the_start_interrupts_at_once(call, counts, bench, whole, tmp_path):
    (ended,) = bench.attempt(tmp_path, Fault(under=tmp_path, calls=(call,), at=1, then="SIGINT"))
    assert_ended(ended, 130, "interrupted", tmp_path, **counts)
    assert not list(tmp_path.glob("checkpoints/*"))
    assert bench.resume(tmp_path, whole) == []


def test_ctrl_c_during_a_restore_loses_nothing(bench, half, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(half, run)
    fault = Fault(under=run / "checkpoints/5/state", calls=("read",), at=2, then="SIGINT")
    (ended,) = bench.attempt(run, fault)
    assert_ended(ended, 130, "interrupted", run, finished=1, killed=1)
    assert bench.resume(run, whole) == []


@pytest.mark.parametrize(
    ("number", "status", "message", "outcome"),
    [
        (signal.SIGKILL, 69, r"a data worker was killed.* \(exit status -9\)", "unavailable"),
        (
            signal.SIGSTOP,
            70,
            r"batch took longer than 25 seconds \(Watchdog.data_seconds\); data worker \d+ is stop",
            "stalled",
        ),
    ],
    ids=["killed", "stopped"],
)
def test_a_lost_data_worker_ends_the_run(number, status, message, outcome, server, tmp_path):
    # The limit is long for a busy machine, on which workers take as long to start.
    endless = Setting(
        run_file="tests/ten_steps.gin",
        flags=(
            *("--gin.train.data_workers=2", "--gin.STEPS=1000000"),
            *("--gin.train.checkpoint_every_steps=1000000", "--gin.train.eval_every_steps=None"),
            *("--gin.train.watchdog=@Watchdog()", "--gin.Watchdog.data_seconds=25.0"),
        ),
    )
    run = tmp_path / "run"
    has_ended = threading.Event()
    arguments = (run / "metrics.jsonl", number, has_ended)
    threading.Thread(target=_signal_a_worker, args=arguments).start()
    (ended,) = Bench(endless, server, tmp_path).attempt(run)
    has_ended.set()
    assert_ended(ended, status, message, run, **{outcome: 1})
    assert ended.err.count("Current thread") == (number == signal.SIGSTOP)
    assert not _workers()


def _signal_a_worker(metrics, number, has_ended):
    """Sends a signal to one of the data workers once the run takes steps."""
    while not has_ended.wait(0.05):
        if metrics.exists() and '"step": 3,' in metrics.read_text():
            os.kill(_workers()[0], number)
            return


def _workers():
    """Returns the data workers below this process."""
    listing = subprocess.run(["ps", "-wweo", "pid,ppid,args"], capture_output=True, text=True)
    found = [line.split(maxsplit=2) for line in listing.stdout.splitlines()[1:]]
    parents = {int(pid): int(parent) for pid, parent, _ in found}

    def is_below(pid):
        return pid == os.getpid() or (pid in parents and is_below(parents[pid]))

    return [int(pid) for pid, _, words in found if "spawn_main" in words and is_below(int(pid))]


# Orbax gives up a save after minutes of the clock, which is one line and no loss.
@pytest.mark.parametrize(("seconds", "statuses"), [(60, {0}), (86_400, {0, 69})])
def test_a_clock_that_moves_loses_nothing(
    seconds, statuses, one_device, bench, whole, tmp_path_factory, tmp_path
):
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    command = ["cc", "-shared", "-fPIC", f"-DSECONDS={seconds}", "-o", library, CLOCK, "-ldl"]
    subprocess.run(command, check=True)
    environment = one_device | {"LD_PRELOAD": str(library)}
    outputs = tmp_path_factory.mktemp("outputs")
    started = time.monotonic()
    with contextlib.closing(ForkServer(outputs, environment)) as server:
        (ended,) = Bench(TEN_STEPS, server, tmp_path_factory.mktemp("moved")).attempt(tmp_path)
    assert ended.status in statuses
    assert complaints(ended) == []
    (end,) = [line for line in read_attempts(tmp_path) if "outcome" in line]
    assert 0 < read_goodput(tmp_path).total < end["seconds"] < time.monotonic() - started
    assert bench.resume(tmp_path, whole) == []

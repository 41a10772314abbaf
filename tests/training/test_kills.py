"""Runs of ten steps that are killed, or whose files fail, at sampled calls.

`experiments/kill_test` tries more of them.
"""

import shutil
import signal

import pytest

from tests.faults import Fault, calls_in, needs_preload, preloaded
from tests.forks import ForkServer
from tests.kills import Bench, Setting, complaints, dropped_views

pytestmark = [pytest.mark.proof, needs_preload]
RUN_FILE = "tests/ten_steps.gin"
TEN_STEPS = Setting(run_file=RUN_FILE)
FIVE_OF_THEM = Setting(run_file=RUN_FILE, flags=("--gin.train.total_steps=5",))
KILLS = 6


@pytest.fixture(scope="module")
def server(one_device, faults_library, tmp_path_factory):
    environment = one_device | preloaded(faults_library)
    made = ForkServer(tmp_path_factory.mktemp("outputs"), environment)
    yield made
    made.close()


@pytest.fixture(scope="module")
def bench(server, tmp_path_factory):
    return Bench(TEN_STEPS, server, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(bench):
    """What an uninterrupted run records, and the changes of its files."""
    return bench.whole()


@pytest.fixture(scope="module")
def half(server, tmp_path_factory):
    """The run after five steps, and the number of reads that restore them."""
    folder = tmp_path_factory.mktemp("half")
    five = Bench(FIVE_OF_THEM, server, folder)
    assert five.attempt(folder / "run")[0].status == 0
    shutil.copytree(folder / "run", folder / "restored")
    five.attempt(folder / "restored", Fault(under=folder / "restored/checkpoints", calls=("read",)))
    return folder / "run", len(calls_in(five.log))


@pytest.mark.parametrize("part", range(KILLS))
def test_a_run_that_is_killed_before_a_change_resumes_bitwise(part, bench, whole, rng, tmp_path):
    content, changes = whole
    at = int(rng.integers(len(changes) * part // KILLS, len(changes) * (part + 1) // KILLS)) + 1
    print(f"killed before {changes[at - 1]}")
    (ended,) = bench.attempt(tmp_path, Fault(under=tmp_path, at=at, torn=bool(part % 2)))
    # Runs differ in how many files Orbax changes at their end: the last may not be reached.
    is_reached = len(calls_in(bench.log)) >= at
    assert is_reached or part == KILLS - 1
    assert ended.status == (-signal.SIGKILL if is_reached else 0)
    assert bench.resume(tmp_path, content) == []


@pytest.mark.parametrize(
    ("calls", "then", "lasting"),
    [
        (("create", "write"), "ENOSPC", True),
        (("write",), "EIO", False),
        (("sync",), "EIO", False),
        (("rename",), "EIO", False),
    ],
    ids=["full_disk", "write", "sync", "rename"],
)
def test_a_run_whose_files_fail_ends_in_one_line_and_resumes(
    calls, then, lasting, bench, whole, rng, tmp_path
):
    content, changes = whole
    at = int(rng.integers(sum(change.kind in calls for change in changes))) + 1
    fault = Fault(under=tmp_path, calls=calls, at=at, then=then, lasting=lasting)
    (ended,) = bench.attempt(tmp_path, fault)
    # Runs differ by a call or two: the last may not be made.
    print(f"failed: {calls_in(bench.log)[at - 1 : at]}")
    assert complaints(ended) == []
    assert bench.resume(tmp_path, content, views=not dropped_views(ended)) == []


def test_a_restore_whose_reads_fail_ends_in_one_line_and_resumes(bench, whole, half, rng, tmp_path):
    folder, reads = half
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    at = int(rng.integers(reads)) + 1
    fault = Fault(under=run / "checkpoints", calls=("read",), at=at, then="EIO")
    (ended,) = bench.attempt(run, fault)
    # Runs differ by a call or two: the last may not be made.
    print(f"failed: {calls_in(bench.log)[at - 1 : at]}")
    assert complaints(ended) == []
    assert bench.resume(run, whole[0]) == []

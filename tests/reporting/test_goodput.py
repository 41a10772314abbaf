"""What a run spent its time on."""

import pytest

from t5lite.core.run_directory import GOODPUT, append_record
from t5lite.reporting.goodput import read_goodput

PHASES = ("other", "restore", "compile", "data", "step", "wait", "evaluate", "save")


@pytest.fixture
def record(tmp_path):
    """Appends a line with so many seconds of some phases and none of the others."""

    def append(attempt, number, /, **seconds):
        seconds = dict.fromkeys(PHASES, 0.0) | seconds
        append_record(tmp_path / GOODPUT, attempt=attempt, step=number, seconds=seconds)

    return append


def test_a_run_without_a_record_has_no_goodput(tmp_path):
    assert read_goodput(tmp_path) is None


def test_steps_and_waits_are_useful(record, tmp_path):
    record(1, 0, other=1.0)
    record(1, 10, other=2.0, data=1.0, step=3.0, wait=4.0)
    found = read_goodput(tmp_path)
    assert found.total == 10
    assert found.fraction == 0.7
    assert found.seconds["lost"] == 0


def test_repeated_steps_are_lost(record, tmp_path):
    # Killed at step 30, and its latest checkpoint was of step 10.
    record(1, 0, restore=1.0)
    record(1, 10, restore=1.0, data=1.0, step=10.0, save=1.0)
    record(1, 20, restore=1.0, data=2.0, step=20.0, save=1.0)
    record(1, 30, restore=1.0, data=4.0, step=30.0, save=2.0)
    # Killed before it saved anything.
    record(2, 10, restore=2.0)
    record(2, 20, restore=2.0, step=10.0)
    record(3, 10, restore=2.0)
    record(3, 40, restore=2.0, step=30.0)
    seconds = read_goodput(tmp_path).seconds
    assert seconds["lost"] == (30 - 10) + (4 - 1) + 10
    assert seconds["stepping"] == 10 + 30
    assert seconds["data"] == 1
    assert seconds["saving"] == 2
    assert seconds["restoring"] == 1 + 2 + 2


def test_all_steps_after_the_earliest_later_restart_are_lost(record, tmp_path):
    # The checkpoint of step 20 was damaged, so the third attempt started from that of step 10.
    record(1, 0)
    record(1, 10, step=10.0)
    record(1, 20, step=20.0)
    record(2, 20)
    record(2, 30, step=10.0)
    record(3, 10)
    record(3, 30, step=20.0)
    seconds = read_goodput(tmp_path).seconds
    assert (seconds["stepping"], seconds["lost"]) == (30, 20)


def test_a_run_that_starts_from_the_beginning_again_has_lost_everything(record, tmp_path):
    record(1, 0)
    record(1, 5, step=5.0)
    record(2, 0)
    seconds = read_goodput(tmp_path).seconds
    assert (seconds["stepping"], seconds["lost"]) == (0, 5)


def test_steps_before_a_return_to_an_earlier_checkpoint_are_lost(record, tmp_path):
    record(1, 0, restore=1.0)
    record(1, 10, restore=1.0, data=1.0, step=10.0)
    record(1, 30, restore=1.0, data=3.0, step=30.0, save=1.0)
    # The run returned to the checkpoint of step 10.
    record(1, 10, restore=3.0, data=3.0, step=30.0, save=1.0)
    record(1, 40, restore=3.0, data=4.0, step=60.0, save=2.0)
    found = read_goodput(tmp_path)
    assert found.total == 3 + 4 + 60 + 2
    seconds = found.seconds
    assert (seconds["stepping"], seconds["lost"]) == (10 + 30, 20 + 2)
    assert (seconds["data"], seconds["saving"], seconds["restoring"]) == (2, 2, 3)

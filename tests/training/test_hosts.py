"""Slow processes, of a job that the test makes up."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from t5lite.training.hosts import HostTimes
from t5lite.training.phases import Phases


class Job:
    """What the processes of a job send each other: names of hosts, then their times."""

    def __init__(self, hosts):
        self.hosts = hosts
        self.times = None

    def process_allgather(self, mine):
        if mine.dtype == np.uint8:
            names = [host.encode().ljust(len(mine), b"\0") for host in self.hosts]
            return np.stack([np.frombuffer(name, np.uint8) for name in names])
        assert mine.shape == (3,)
        return np.array(self.times, np.float32)


@pytest.fixture
def compare(monkeypatch):
    """The metrics of seconds (data, step, wait) of each process, and what is logged."""

    def run(times):
        job = Job([f"host{i}" for i in range(len(times))])
        monkeypatch.setattr(jax, "process_count", lambda: len(times))
        monkeypatch.setattr(multihost_utils, "process_allgather", job.process_allgather)
        logged = []
        hosts = HostTimes(Phases(), logged.append)
        job.times = times
        return hosts.metrics(), logged

    return run


def test_one_process_is_compared_with_none():
    assert HostTimes(Phases(), print).metrics() == {}


@pytest.mark.parametrize(
    "times",
    [
        [(0.1, 1.0, 8.9), (7.0, 1.0, 2.0)],
        [(0.1, 1.0, 8.9), (7.0, 1.0, 2.0), (0.2, 1.0, 8.8), (0.1, 0.9, 9.0)],
    ],
)
def test_the_process_that_the_others_wait_for_is_named(times, compare):
    metrics, logged = compare(times)
    assert metrics["slowest_process"] == 1.0
    assert metrics["slowest_host_seconds"] == pytest.approx(8.0)
    assert metrics["median_host_seconds"] == pytest.approx(1.1)
    assert metrics["longest_data_wait_seconds"] == pytest.approx(7.0)
    (line,) = logged
    assert line.startswith("process 1 on host1 is slow: it spent 8 seconds on its own part")
    assert line.endswith("waited 7 for data; the median is 1.1")


@pytest.mark.parametrize(
    "times",
    [
        # As slow as each other, and twice as slow in a time that does not matter.
        [(0.1, 5.0, 1.0), (0.2, 6.0, 1.0)],
        [(0.1, 0.1, 9.8), (0.3, 0.3, 9.4)],
    ],
)
def test_no_process_is_named_if_none_delays_the_others(times, compare):
    assert compare(times)[1] == []

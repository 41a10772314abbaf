"""Phases and their watchdog, with a clock of the test."""

import itertools
import re

import pytest

from t5lite.core.errors import UserError
from t5lite.training import phases as phases_module
from t5lite.training import watchdog
from t5lite.training.phases import Phases
from t5lite.training.watchdog import Watchdog, watch


class Ended(Exception):
    """The watchdog ended the process."""


class Clock:
    """Time, which passes only while something waits: each wait is `factor` times too long."""

    def __init__(self, ticks, factor=1.0):
        self.now = 1000.0
        self.ticks = ticks
        self.factor = factor

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.ticks -= 1
        self.now += self.factor * seconds
        return self.ticks < 0


@pytest.fixture
def watched(monkeypatch, capfd):
    """Watches phases for some ticks; returns the error of the watchdog, or None."""

    def run(limits, since, clock):
        def end(outcome, error, status):
            raise Ended(outcome, error, status)

        monkeypatch.setattr(watchdog, "time", clock)
        monkeypatch.setattr(watchdog, "end_process", end)
        try:
            watch(since, limits.limits, clock.wait)
        except Ended as ended:
            return ended.args
        return None

    return run


def always(phase):
    """A phase that never ends."""
    since = (phase, 0.0)
    return lambda: since


def test_a_phase_beyond_its_limit_ends_the_process_with_the_stacks(watched, capfd):
    clock = Clock(ticks=1000)
    outcome, error, status = watched(Watchdog(data_seconds=60.0), always("data"), clock)
    assert (outcome, status) == ("stalled", 70)
    assert error.startswith("waiting for a batch took longer than 60 seconds (Watchdog.data_seco")
    assert 1060 < clock.now <= 1060 + 2 * 60 / watchdog.TICKS_OF_A_LIMIT
    stacks = capfd.readouterr().err
    assert len(re.findall("most recent call first", stacks)) >= 1
    assert f"in {watch.__name__}" in stacks


@pytest.mark.parametrize("phase", ["compile", "evaluate", "other"])
def test_a_phase_without_a_limit_may_take_any_time(phase, watched):
    assert watched(Watchdog(), always(phase), Clock(ticks=100_000)) is None


def test_phases_that_follow_each_other_are_timed_apart(watched):
    stamps = itertools.count()
    assert watched(Watchdog(), lambda: ("step", next(stamps)), Clock(ticks=100_000)) is None


def test_time_in_which_the_process_was_suspended_does_not_count(watched):
    # Each tick takes an hour, as if the process was stopped again and again.
    clock = Clock(ticks=100, factor=3600.0)
    assert watched(Watchdog(step_seconds=1000.0), always("wait"), clock) is None
    assert clock.now > 1e6


def test_limits_must_be_positive():
    with pytest.raises(UserError, match=r"Watchdog.step_seconds must be over 0, got 0.0"):
        Watchdog(step_seconds=0.0)
    assert set(Watchdog(step_seconds=None).limits) == {"data", "save", "restore"}


def test_seconds_of_nested_phases_are_counted_once(monkeypatch):
    clock = Clock(ticks=0)
    monkeypatch.setattr(phases_module, "time", clock)
    phase = Phases()
    clock.now += 1
    with phase("save"):
        clock.now += 2
        with phase("wait"):
            clock.now += 4
        clock.now += 8
    timed = phase("evaluate")(clock.wait)
    timed(16.0)
    timed(32.0)
    spent = {name: seconds for name, seconds in phase.seconds().items() if seconds}
    assert spent == {"other": 1, "save": 10, "wait": 4, "evaluate": 48}


def test_a_phase_ends_with_an_error(monkeypatch):
    phase = Phases()
    with pytest.raises(ValueError, match="no"), phase("data"):
        raise ValueError("no")
    assert phase.since()[0] == "other"

"""Signals during the handling of a signal, as schedulers and dying parents send them."""

import subprocess
import sys

import pytest

from tests import small

BEGINNING = """
import signal
import sys


def interrupted(position, do):
    count = 0

    def at_each_call_and_return(*_):
        nonlocal count
        count += 1
        if count == position:
            signal.raise_signal(signal.SIGTERM)

    sys.setprofile(at_each_call_and_return)
    do()
    sys.setprofile(None)


def ask():
    signal.raise_signal(signal.SIGTERM)
"""
TRAINING = """
from t5lite.training.preemption import stop_requests

with stop_requests() as stop:
    for position in range(1, 40):
        interrupted(position, ask)
    assert stop(1)
"""
LAUNCHING = """
from t5lite.launching.stopping import until_stopped


def work(stopping):
    for position in range(1, 40):
        interrupted(position, ask)
        interrupted(position, lambda: stopping.wait(0.01))
    assert stopping.wait(10)


until_stopped(work)
"""


@pytest.mark.parametrize("use", [TRAINING, LAUNCHING], ids=["training", "launching"])
def test_a_signal_may_arrive_at_any_point_while_another_is_handled(use):
    subprocess.run([sys.executable, "-c", BEGINNING + use], check=True, timeout=small.PATIENCE)

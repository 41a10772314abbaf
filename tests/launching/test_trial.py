"""Attempts at a trial, and the outcome that is recorded."""

import signal
import threading

import pytest

from t5lite.core.errors import Unavailable, UserError
from t5lite.core.run_directory import (
    append_record,
    attempt,
    locked,
    outcomes,
    utc_now,
    write_result,
)
from t5lite.launching import trial
from t5lite.launching.launch import Launch
from t5lite.launching.launch_files import save_launch
from t5lite.launching.open_study import open_study


class ScriptedStarter:
    """Starts attempts that do what a list says, one entry for each start."""

    restarts = True
    attaches = False

    def __init__(self, launch, *script):
        self.launch = launch
        self.script = list(script)

    def start(self, number, arguments, log):
        self.code = self.script.pop(0)(self.launch.model_dir(number))
        return self

    def poll(self):
        return self.code

    def stop(self):
        pass

    def release(self, numbers):
        pass


def dies(code):
    """Ends before it records an attempt."""
    return lambda model_dir: code


def fails(code):
    def start(model_dir):
        error = {69: Unavailable, 2: UserError}.get(code, RuntimeError)
        with pytest.raises(error), attempt(model_dir, ["train"]):
            raise error("why")
        return code

    return start


def is_killed(model_dir):
    append_record(model_dir / "attempts.jsonl", attempt=len(outcomes(model_dir)), began=utc_now())
    return -signal.SIGKILL


def finishes(model_dir, step=4):
    append_record(model_dir / "metrics.jsonl", step=0, split="dev", loss=9.0)
    append_record(model_dir / "metrics.jsonl", step=step, split="dev", loss=1.0)
    with attempt(model_dir, ["train"]):
        write_result(model_dir, 4)
    return 0


@pytest.fixture
def launch(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "TRIAL_RETRY_SECONDS", 0.01)
    launch = Launch(
        folder=str(tmp_path / "lr"),
        command="train",
        flags=[],
        engine="local",
        working_dir="/",
        space={"a": "[1, 2]"},
        objective="loss",
        max_failures=2,
    )
    save_launch(launch)
    return launch


def run(launch, *script):
    engine = ScriptedStarter(launch, *script)
    state = trial.run_trial(launch, open_study(launch), 0, engine, threading.Event())
    assert not engine.script
    return state, open_study(launch).trials()[0].state.name


def test_crashes_draw_on_the_budget(launch):
    assert run(launch, fails(1), is_killed, dies(1)) == ("failed", "FAIL")
    counts = outcomes(launch.model_dir(0))
    assert (counts["failed"], counts["killed"]) == (2, 1)


def test_restarts_after_a_preemption_are_free(launch):
    assert run(launch, *[dies(42)] * 5, finishes) == ("complete", "COMPLETE")
    assert open_study(launch).trials()[0].value == 1.0


def test_a_signal_that_the_launcher_did_not_send_is_not_free(launch):
    assert run(launch, *[dies(-signal.SIGTERM)] * 3) == ("failed", "FAIL")
    assert outcomes(launch.model_dir(0))["failed"] == 3


def test_a_missing_resource_never_fails_a_trial(launch):
    assert run(launch, *[fails(69)] * 3) == ("unavailable", "RUNNING")
    assert run(launch, *[dies(69)] * 3) == ("unavailable", "RUNNING")
    # The resource is available again; crashes have a budget of their own.
    assert run(launch, fails(1), fails(1), finishes) == ("complete", "COMPLETE")


@pytest.mark.parametrize("rejects", [fails(2), dies(2)], ids=["in an attempt", "before"])
def test_a_mistake_is_rejected_and_not_retried(launch, rejects):
    assert run(launch, rejects) == ("failed", "FAIL")
    counts = outcomes(launch.model_dir(0))
    assert (counts["rejected"], counts["failed"]) == (1, 0)


def test_a_trial_that_has_ended_keeps_its_outcome(launch):
    assert run(launch, fails(2)) == ("failed", "FAIL")
    assert run(launch) == ("failed", "FAIL")


def test_a_score_of_an_earlier_step_is_not_the_result(launch):
    assert run(launch, lambda folder: finishes(folder, step=2)) == ("failed", "FAIL")


def test_waiting_for_another_supervisor_can_be_stopped(launch):
    stopping = threading.Event()
    launch.model_dir(0).mkdir(parents=True)
    threading.Timer(0.3, stopping.set).start()
    with locked(launch.model_dir(0)):
        engine = ScriptedStarter(launch)
        assert trial.run_trial(launch, open_study(launch), 0, engine, stopping) == "stopped"

"""How a trial's processes end, and what is made of it."""

import signal
import threading

import pytest

from t5lite.core.errors import Unavailable
from t5lite.core.run_directory import append_record, attempt, locked, outcomes, write_result
from t5lite.launching import trial
from t5lite.launching.launch import Launch, save


class Scripted:
    """Processes that do what a list says, one entry a start."""

    restarts, attaches = True, False

    def __init__(self, launch, *script):
        self.launch, self.script, self.ended = launch, list(script), []

    def start(self, number, arguments, log):
        self.code = self.script.pop(0)(self.launch.model_dir(number))
        return self

    def poll(self):
        return self.code

    def stop(self):
        pass

    def end(self, number):
        pass


def dies(code):
    """Before there is an attempt."""
    return lambda model_dir: code


def fails(code):
    def start(model_dir):
        error = Unavailable if code == 69 else RuntimeError
        with pytest.raises(error), attempt(model_dir, ["train"]):
            raise error("why")
        return code

    return start


def is_killed(model_dir):
    append_record(model_dir / "attempts.jsonl", attempt=len(outcomes(model_dir)), began="")
    return -signal.SIGKILL


def finishes(model_dir, step=4):
    append_record(model_dir / "metrics.jsonl", step=0, split="dev", loss=9.0)
    append_record(model_dir / "metrics.jsonl", step=step, split="dev", loss=1.0)
    with attempt(model_dir, ["train"]):
        write_result(model_dir, 4)
    return 0


@pytest.fixture
def launch(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "RETRY_SECONDS", 0.01)
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
    save(launch)
    return launch


def run(launch, *script):
    engine = Scripted(launch, *script)
    state = trial.run_trial(launch, launch.study(), 0, engine, threading.Event())
    assert not engine.script
    return state, launch.study().trials()[0].state.name


def test_crashes_draw_on_the_budget(launch):
    assert run(launch, fails(1), is_killed, dies(1)) == ("failed", "FAIL")
    counts = outcomes(launch.model_dir(0))
    assert (counts["failed"], counts["killed"]) == (2, 1)


def test_what_saved_or_was_asked_to_stop_is_free(launch):
    assert run(launch, *[dies(42)] * 5, finishes) == ("complete", "COMPLETE")
    assert launch.study().trials()[0].value == 1.0


def test_a_signal_that_nobody_sent_is_not_free(launch):
    assert run(launch, *[dies(-signal.SIGTERM)] * 3) == ("failed", "FAIL")
    assert outcomes(launch.model_dir(0))["failed"] == 3


def test_what_lacks_something_never_fails_for_good(launch):
    assert run(launch, *[fails(69)] * 3) == ("unavailable", "RUNNING")
    assert run(launch, *[dies(69)] * 3) == ("unavailable", "RUNNING")
    # Somebody mends it; crashes have a budget of their own.
    assert run(launch, fails(1), fails(1), finishes) == ("complete", "COMPLETE")


def test_a_mistake_is_not_tried_again(launch):
    assert run(launch, fails(2)) == ("failed", "FAIL")


def test_a_score_of_an_earlier_step_is_none_of_the_last(launch):
    assert run(launch, lambda folder: finishes(folder, step=2)) == ("failed", "FAIL")


def test_who_waits_for_another_watcher_can_be_stopped(launch):
    stopping = threading.Event()
    launch.model_dir(0).mkdir(parents=True)
    threading.Timer(0.3, stopping.set).start()
    with locked(launch.model_dir(0)):
        engine = Scripted(launch)
        assert trial.run_trial(launch, launch.study(), 0, engine, stopping) == "stopped"

"""The steps of running trials."""

import threading

import pytest
import rich.console

from t5lite.cli import launch_progress
from t5lite.cli.launch_progress import LaunchProgress, recorded_step
from t5lite.core.run_directory import append_record
from t5lite.launching.launch import Launch
from tests import small


@pytest.fixture
def launch(tmp_path):
    return Launch(
        folder=str(tmp_path / "lr"),
        command="train",
        flags=[],
        engine="local",
        working_dir="/",
        last_step=400,
    )


def record(launch, step):
    folder = launch.model_dir(0)
    folder.mkdir(parents=True, exist_ok=True)
    append_record(folder / "metrics.jsonl", step=step, split="train", loss=1.0, more="x" * 20000)


def test_the_step_is_that_of_the_last_whole_record(launch):
    assert recorded_step(launch, 0) == 0
    record(launch, 7)
    append_record(launch.model_dir(0) / "metrics.jsonl", step=8, split="train")
    append_record(launch.model_dir(0) / "metrics.jsonl", step=9, split="train")
    with (launch.model_dir(0) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "spl')
    assert recorded_step(launch, 0) == 9


def test_steps_of_running_trials_are_logged(launch, monkeypatch, capsys):
    monkeypatch.setattr(launch_progress, "REFRESH_SECONDS", 0.02)
    monkeypatch.setattr(launch_progress, "STEP_LINE_SECONDS", 0.02)
    printed = threading.Event()
    print_line = rich.console.Console.print

    def print_and_notify(*arguments, **options):
        print_line(*arguments, **options)
        printed.set()

    monkeypatch.setattr(rich.console.Console, "print", print_and_notify)
    launch.model_dir(0).mkdir(parents=True)
    append_record(launch.model_dir(0) / "metrics.jsonl", step=120, split="train")
    with LaunchProgress(launch) as progress:
        progress.on_state(0, "started")
        assert printed.wait(small.PATIENCE)
        progress.on_state(0, "complete")
    captured = capsys.readouterr()
    assert "trial 0: step 120/400" in captured.err
    assert not captured.out

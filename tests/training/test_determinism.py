"""`train --verify_determinism`: equal replays, and a difference that is found and named."""

import dataclasses
import shutil

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.training import determinism
from t5lite.training.feed import Feed
from tests.training.faults import MarkedLoss, verify_alike


@pytest.fixture
def make_run(make_run):
    """Makes runs of the program of other tests."""
    return lambda model_dir: make_run(model_dir, loss=MarkedLoss())


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_steps_taken_again_are_bitwise_equal_from_a_checkpoint_and_from_the_start(
    of_three_steps, make_run, tmp_path
):
    shutil.copytree(of_three_steps[1], tmp_path / "run")
    before = snapshot(tmp_path / "run")
    assert verify_alike(make_run(tmp_path / "run"), 3).startswith(
        "deterministic: 3 steps taken again"
    )
    assert snapshot(tmp_path / "run") == before
    assert verify_alike(make_run(tmp_path / "new"), 1).startswith(
        "deterministic: 1 steps taken again"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_batch_that_differs_is_named(make_run, tmp_path, monkeypatch):
    plain = Feed.__next__
    calls = iter(range(99))

    def uneven(self):
        batch = {name: np.array(x) for name, x in plain(self).items()}
        if next(calls) == 3:
            batch["encoder_input_tokens"][2, 1] += 1
        return batch

    monkeypatch.setattr(Feed, "__next__", uneven)
    # The second batch of the second replay.
    message = r"batch 2: encoder_input_tokens \(1 of 192 numbers\) differs; report it"
    with pytest.raises(UserError, match=message):
        verify_alike(make_run(tmp_path), 2)


def test_a_restored_state_that_differs_is_named(make_run, tmp_path, monkeypatch):
    plain = determinism.resume_latest

    def drifting(program, checkpoints, log):
        start, state = plain(program, checkpoints, log)
        if state is None:
            return start, state
        return start, dataclasses.replace(state, step=state.step + 1)

    monkeypatch.setattr(determinism, "resume_latest", drifting)
    with pytest.raises(UserError, match=r"state after 2 steps: step .* after a save and restore"):
        verify_alike(make_run(tmp_path), 2)


def test_the_scratch_folder_is_never_one_of_the_user(make_run, tmp_path):
    (tmp_path / "run.determinism").mkdir()
    with pytest.raises(UserError, match="must not exist"):
        verify_alike(make_run(tmp_path / "run"), 1)
    assert (tmp_path / "run.determinism").is_dir()

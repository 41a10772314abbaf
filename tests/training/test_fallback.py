"""Runs whose latest checkpoint is damaged."""

import shutil

import jax
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.run_directory import read_metrics
from t5lite.training.slot import VectorizedTrial
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small
from tests.equal_runs import events_in

# Sums of a batched product are added up in another order.
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def of_six_steps(text_file, data_dir, tmp_path_factory):
    """The state and the folder of a run with checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("six")
    run = small.run(text_file, data_dir, folder, checkpoint_every_steps=2, eval_every_steps=2)
    return small.train(run), folder


@pytest.fixture
def damaged(of_six_steps, tmp_path):
    """Returns the state of that run, and a function that damages checkpoints of a copy."""
    state, folder = of_six_steps
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    def damage(*steps):
        for step, name in zip(steps, ("state/manifest.ocdbt", "about/metadata"), strict=False):
            (tmp_path / "checkpoints" / str(step) / name).write_bytes(b"\0" * 20)

    return state, damage


def steps_of(model_dir):
    return [(m["step"], m["split"]) for m in read_metrics(model_dir)]


def shown_of(model_dir):
    """Returns the steps and values that TensorBoard shows, without measured times."""
    shown = events_in(model_dir / "tensorboard")
    return {tag: points for tag, points in shown.items() if "second" not in tag}


def test_a_run_falls_back_to_the_latest_checkpoint_that_is_not_damaged(
    damaged, make_run, tmp_path, caplog
):
    state, damage = damaged
    damage(6, 4)
    before = steps_of(tmp_path)
    shown = shown_of(tmp_path)
    run = make_run(tmp_path, checkpoint_every_steps=2, eval_every_steps=2)
    resumed = small.train(run)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    # The record has each step once.
    assert steps_of(tmp_path) == before
    assert len(set(before)) == len(before)
    # And so has TensorBoard, though its files hold steps 3 to 6 twice.
    assert shown_of(tmp_path) == shown
    assert [step for step, _ in shown["train/loss_nats_per_token"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in shown["validation/loss_nats_per_token"]] == [0, 2, 4, 6]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert StoredCheckpoints(tmp_path / "checkpoints").steps() == [2, 4, 6]
    aside = tmp_path / "damaged_checkpoints"
    assert sorted(path.name for path in aside.iterdir()) == ["4", "6"]
    assert (aside / "6" / "state" / "manifest.ocdbt").read_bytes() == b"\0" * 20
    assert f"WARNING: the run falls back to {tmp_path / 'checkpoints' / '2'}" in caplog.text
    assert "6 is damaged: state/manifest.ocdbt has 20 bytes instead of" in caplog.text


def test_a_run_that_is_to_stop_changes_nothing(damaged, make_run, tmp_path):
    _, damage = damaged
    damage(6)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="6 is damaged: .*; bind train.on_damage = 'previous' to"):
        small.train(make_run(tmp_path, on_damage="stop"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_without_an_intact_checkpoint_does_not_start_anew(damaged, make_run, tmp_path):
    _, damage = damaged
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    damage(6, 4)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="6 is damaged: .*; no earlier one is intact; restore a"):
        small.train(make_run(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


def test_on_damage_has_two_values(make_run, tmp_path):
    with pytest.raises(UserError, match="train.on_damage is unknown: got 'ignore'; known: prev"):
        make_run(tmp_path, on_damage="ignore")


@pytest.mark.proof
def test_a_trial_of_a_vectorized_sweep_falls_back(damaged, make_run, tmp_path, caplog):
    state, damage = damaged
    damage(6)
    ended = {}
    run = make_run(tmp_path, checkpoint_every_steps=2, eval_every_steps=2)
    trial = VectorizedTrial(run=run, config_text="# all\n", command=["t5lite", "train"])
    small.train_vectorized(
        iter([trial]),
        1,
        small.mesh(run),
        evaluate=small.evaluate_of,
        dropout=False,
        on_end=lambda run, how: ended.update({run.model_dir: how}),
    )
    assert ended == {run.model_dir: "finished"}
    assert f"WARNING: the run falls back to {tmp_path / 'checkpoints' / '4'}" in caplog.text
    wanted = small.program_of(run).state
    again = StoredCheckpoints(tmp_path / "checkpoints").restore(6, wanted)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=ROUNDING, atol=ROUNDING)
    assert len(set(steps_of(tmp_path))) == len(steps_of(tmp_path))

"""Runs that diverge: they return to the last good checkpoint, or stop and say why."""

import contextlib
import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.core.errors import Diverged, UserError
from t5lite.core.run_directory import read_metrics
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.training.bad_steps import BadSteps
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.checkpoints import Checkpoints
from t5lite.training.good_checkpoints import GOOD_FILE, read_history
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small
from tests.training.faults import (
    NOT_A_NUMBER,
    MarkedLoss,
    mark_batches,
    program_alike,
    train_alike,
)

# Two bad steps in a row are enough.
RULES = BadSteps(max_in_a_row=2)
# A finite update that loses all parameters.
LOST = 1e15


def assert_same(some, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(some), jax.device_get(other))


def steps_of(model_dir, split="train"):
    return [m["step"] for m in read_metrics(model_dir) if m["split"] == split]


def losses(model_dir):
    lines = read_metrics(model_dir)
    return {m["step"]: m["loss_nats_per_token"] for m in lines if m["split"] == "train"}


def checkpoint_steps(model_dir, folder=FOLDER):
    paths = (model_dir / folder).iterdir()
    return sorted({int(path.name.partition(".")[0]) for path in paths if path.is_dir()})


def adamw(rate):
    return make_optimizer(optax.adamw, name="AdamW", learning_rate=rate)


@pytest.fixture
def make_run(make_run):
    """Makes runs with one loss, so that all share a program."""
    return lambda model_dir, **changes: make_run(model_dir, **{"loss": MarkedLoss(), **changes})


@pytest.fixture
def bad_run(make_run, monkeypatch):
    """Makes a run of eight steps in which the batches 5 and 6 are bad, and 3 saves good ones."""
    mark_batches(monkeypatch, {5: NOT_A_NUMBER, 6: NOT_A_NUMBER})

    def make(model_dir, **changes):
        choices = {"bad_steps": RULES, "total_steps": 8}
        return make_run(model_dir, **{**choices, **changes})

    return make


@pytest.mark.proof
def test_a_run_returns_to_its_last_good_checkpoint_and_skips_the_batches(bad_run, tmp_path, capsys):
    state = small.train(bad_run(tmp_path / "run"), shared=False)
    out = " ".join(capsys.readouterr().out.split())
    assert "training diverged: 2 bad steps in a row" in out
    assert "at step 6; returning to step 3 and skipping batches 4 to 6" in out
    assert out.count("compiling the train step") == 1
    assert steps_of(tmp_path / "run") == [1, 2, 3, 4, 5, 6, 7, 8]
    # The same as if the user had skipped them.
    skipped = bad_run(tmp_path / "skipped", skip_batches=[(4, 6)])
    assert_same(state, train_alike(skipped))
    assert losses(tmp_path / "run") == losses(tmp_path / "skipped")
    history = read_history(tmp_path / "run" / FOLDER)
    assert history.skipped(0) == [(4, 6)]
    assert set(checkpoint_steps(tmp_path / "run")) <= set(history.good)


@pytest.mark.proof
def test_events_of_a_run_that_returned_hold_each_step_once(bad_run, tmp_path):
    train_alike(bad_run(tmp_path))
    files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.name[-1])
    assert len(files) == 2
    # TensorBoard hides events of the step in SessionLog.START, and later ones, in earlier files.
    from tensorboardX.proto import event_pb2

    data = files[1].read_bytes()
    length = int.from_bytes(data[:8], "little")
    second = data[16 + length :]
    event = event_pb2.Event.FromString(second[12 : 12 + int.from_bytes(second[:8], "little")])
    assert event.session_log.status == event.session_log.START
    assert event.step == 4


@pytest.mark.proof
@pytest.mark.parametrize("killed_at", [4, 7])
def test_a_run_killed_after_a_return_resumes_bitwise(bad_run, tmp_path, monkeypatch, killed_at):
    whole = train_alike(bad_run(tmp_path / "whole"))
    parts = bad_run(tmp_path / "parts")

    class Killed(BaseException):
        """Not an error that anything handles."""

    def kill(self, step, metrics):
        returned = read_history(tmp_path / "parts" / FOLDER).returns
        if returned and step == killed_at:
            raise Killed

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr("t5lite.training.progress.Progress.report", kill)
        train_alike(parts)
    assert max(losses(tmp_path / "parts")) == killed_at
    assert_same(whole, train_alike(parts))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.proof
def test_a_run_killed_in_the_midst_of_a_return_resumes_bitwise(bad_run, tmp_path, monkeypatch):
    whole = train_alike(bad_run(tmp_path / "whole", checkpoint_every_steps=2))
    parts = bad_run(tmp_path / "parts", checkpoint_every_steps=2)

    def killed(folder, history):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        # Checkpoints are moved, and the return is not recorded yet.
        patch.setattr("t5lite.training.returns.write_history", killed)
        train_alike(parts)
    assert read_history(tmp_path / "parts" / FOLDER).returns == ()
    assert_same(whole, train_alike(parts))


def test_a_run_stops_after_its_returns_with_a_diagnosis(make_run, tmp_path, monkeypatch):
    mark_batches(monkeypatch, dict.fromkeys(range(5, 99), NOT_A_NUMBER))
    run = make_run(tmp_path, bad_steps=RULES, total_steps=8)
    with pytest.raises(Diverged) as caught:
        train_alike(run)
    message = str(caught.value)
    assert "\n" not in message
    assert "training diverged: 2 bad steps in a row, the latest with loss nan" in message
    assert "returned 2 times to step 3; lower the learning rate" in message
    assert "restart to resume from step 3" in message
    assert checkpoint_steps(tmp_path) == [3]


@pytest.mark.proof
def test_a_diverged_run_resumes_on_its_path_with_a_lower_learning_rate(make_run, tmp_path):
    whole = make_run(tmp_path / "whole", optimizer=adamw(0.01), total_steps=9)
    expected = train_alike(whole)
    run = dataclasses.replace(whole, model_dir=str(tmp_path / "run"))
    train_alike(dataclasses.replace(run, total_steps=3))
    stops = dataclasses.replace(RULES, max_returns=0)
    lost = dataclasses.replace(run, optimizer=adamw(LOST), bad_steps=stops)
    # The first update is finite, and all parameters are lost.
    with pytest.raises(Diverged, match="2 bad steps in a row.* restart to resume from step 3"):
        train_alike(lost)
    assert_same(expected, train_alike(run))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    # Each step is recorded once.
    assert steps_of(tmp_path / "run") == list(range(1, 10))


@pytest.mark.proof
def test_a_checkpoint_of_lost_parameters_is_not_good_and_is_left(make_run, tmp_path):
    run = make_run(tmp_path, optimizer=adamw(0.01), total_steps=3, bad_steps=RULES)
    train_alike(run)
    # The update of step 4 loses the parameters, and its checkpoint is complete.
    lost = dataclasses.replace(
        run, optimizer=adamw(LOST), total_steps=9, checkpoint_every_steps=4, bad_steps=RULES
    )
    with pytest.raises(Diverged, match="resume from step 3"):
        train_alike(lost)
    assert checkpoint_steps(tmp_path) == [3]
    assert checkpoint_steps(tmp_path, "diverged_checkpoints") == [4]
    train_alike(dataclasses.replace(run, total_steps=5))
    assert checkpoint_steps(tmp_path) == [3, 5]


@pytest.fixture
def lost_checkpoint(of_three_steps, make_run, tmp_path):
    """A MODEL_DIR with a good checkpoint 3 and a complete checkpoint 5 that is not a number."""
    folder = tmp_path / "lost"
    shutil.copytree(of_three_steps[1], folder)
    run = make_run(folder, bad_steps=RULES)
    train_alike(dataclasses.replace(run, total_steps=5))
    with contextlib.closing(Checkpoints(folder / FOLDER)) as checkpoints:
        program = program_alike(run)
        state = checkpoints.restore(5, program.state)
        about = checkpoints.about(5)
        shutil.rmtree(folder / FOLDER / "5")
        params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params)
    with contextlib.closing(Checkpoints(folder / FOLDER)) as checkpoints:
        checkpoints.save(5, dataclasses.replace(state, params=params), about)
    # As runs of earlier releases, which recorded nothing.
    (folder / FOLDER / GOOD_FILE).unlink()
    return run


@pytest.mark.proof
def test_a_run_leaves_a_lost_checkpoint_of_an_earlier_release(lost_checkpoint, tmp_path, capsys):
    run = dataclasses.replace(lost_checkpoint, total_steps=9)
    state = train_alike(run)
    assert int(state.step) == 9
    assert "returning to step 3" in capsys.readouterr().out
    assert steps_of(tmp_path / "lost") == list(range(1, 10))


@pytest.mark.proof
@pytest.mark.parametrize("rules", [RULES, None], ids=["on", "off"])
def test_an_initial_checkpoint_that_is_not_finite_is_named(lost_checkpoint, make_run, rules):
    source = f"{lost_checkpoint.model_dir}/checkpoints/5"
    run = make_run(
        pathlib.Path(lost_checkpoint.model_dir).with_name("new"),
        initial_checkpoint=source,
        bad_steps=rules,
    )
    with pytest.raises(
        UserError, match=rf"no step from train\.initial_checkpoint {source} is good: .* start from"
    ):
        train_alike(run)


@pytest.mark.proof
def test_the_only_checkpoint_is_named_if_it_is_lost(lost_checkpoint, tmp_path):
    shutil.rmtree(tmp_path / "lost" / FOLDER / "3")
    with pytest.raises(UserError, match=r"checkpoints/5 is good: 2 bad .* use another MODEL_DIR"):
        train_alike(dataclasses.replace(lost_checkpoint, total_steps=9))


def test_a_loss_that_leaves_its_band_returns(make_run, tmp_path):
    band = BadSteps(recent_steps=3, max_loss_rise=1.0, max_returns=0, max_norm_ratio=1e9)
    run = make_run(tmp_path, optimizer=adamw(0.0), total_steps=6, bad_steps=band)
    train_alike(run)
    # Finite updates, but far from any path.
    risen = dataclasses.replace(run, optimizer=adamw(3.0), total_steps=30)
    with pytest.raises(
        Diverged, match=r"nats per token over its lowest value, more than BadSteps.max_loss_rise"
    ):
        train_alike(risen)
    assert checkpoint_steps(tmp_path)[-1] == 6


@pytest.mark.proof
def test_without_bad_steps_a_run_stops_at_the_first_and_resumes_from_a_good_one(make_run, tmp_path):
    run = make_run(tmp_path, optimizer=adamw(0.01), total_steps=3, bad_steps=None)
    train_alike(run)
    lost = dataclasses.replace(run, optimizer=adamw(LOST), total_steps=9, checkpoint_every_steps=4)
    with pytest.raises(
        Diverged,
        match="training diverged: loss or gradient is not finite at step 5; lower .* from step 3",
    ):
        train_alike(lost)
    assert checkpoint_steps(tmp_path) == [3]
    assert int(train_alike(dataclasses.replace(run, total_steps=5)).step) == 5


def test_a_run_that_ends_with_lost_parameters_does_not_succeed(make_run, tmp_path):
    run = make_run(tmp_path, optimizer=adamw(LOST), total_steps=3)
    with pytest.raises(Diverged, match="the latest step is bad and the evaluation not finite"):
        train_alike(run)
    assert not (tmp_path / "result.json").exists()
    assert StoredCheckpoints(tmp_path / FOLDER).steps() == []


def test_foreign_bytes_in_the_history_are_one_line(of_three_steps, make_run, tmp_path):
    shutil.copytree(of_three_steps[1], tmp_path, dirs_exist_ok=True)
    for content in (b"\xff\x00", b"3", b"[]", b'{"good": ["a"], "returns": []}', b"{" * 10**5):
        (tmp_path / FOLDER / GOOD_FILE).write_bytes(content)
        with pytest.raises(
            UserError, match=r"good\.json is damaged: .*; restore it from a copy, or delete it"
        ):
            train_alike(make_run(tmp_path))


@pytest.mark.proof
def test_a_checkpoint_without_recent_steps_is_restored(make_run, tmp_path):
    train_alike(make_run(tmp_path, total_steps=3, bad_steps=None))
    state = train_alike(make_run(tmp_path, total_steps=6))
    assert int(state.recent.good_steps) == 3
    # And the other way round.
    assert train_alike(make_run(tmp_path, total_steps=7, bad_steps=None)).recent is None


def test_a_run_whose_first_batches_are_bad_starts_without_them(make_run, tmp_path, monkeypatch):
    mark_batches(monkeypatch, {1: NOT_A_NUMBER, 2: NOT_A_NUMBER})
    # The evaluation of the initial parameters is finite, so the batches are at fault.
    train_alike(make_run(tmp_path, bad_steps=RULES, total_steps=3))
    assert steps_of(tmp_path) == [1, 2, 3]
    assert read_history(tmp_path / FOLDER).skipped(0) == [(1, 2)]

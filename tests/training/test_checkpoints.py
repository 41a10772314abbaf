import os
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest

from t5lite.core.errors import UserError
from t5lite.training.checkpoint_names import find_checkpoint
from t5lite.training.checkpoints import Checkpoints
from t5lite.training.state import TrainState
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests.faults import Fault, needs_preload, preloaded


def state(value):
    return TrainState(
        step=jnp.int32(1),
        params={"kernel": jnp.full((4, 8), value)},
        opt_state=(),
    )


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints")
    yield made
    made.close()


def test_a_full_disk_is_found_before_anything_is_written(checkpoints, tmp_path, monkeypatch):
    checkpoints.save(1, state(1.0), {})
    checkpoints.close()
    usage = shutil.disk_usage(tmp_path)
    # Room for the parameters alone.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=128))
    with pytest.raises(UserError, match="a checkpoint needs 132 bytes, but .* has 128 left"):
        checkpoints.save(2, state(2.0), {})
    again = StoredCheckpoints(tmp_path / "checkpoints")
    assert again.steps() == [1]
    assert float(again.restore(1, state(0.0)).params["kernel"].sum()) == 32.0


def test_parameters_are_restored_without_the_rest(checkpoints):
    checkpoints.save(3, state(2.0), {"batch_size": 8})
    checkpoints._manager.wait_until_finished()
    params = checkpoints.restore_params(3, {"kernel": jnp.zeros((4, 8))})
    assert float(params["kernel"].sum()) == 64.0
    assert checkpoints.about(3) == {"batch_size": 8}


def test_the_best_checkpoint_is_kept_with_the_latest(tmp_path):
    ranked = Checkpoints(tmp_path / "ranked", keep=1, keep_best=True)
    for step, rank in enumerate([0.5, 0.9, None, 0.1], start=1):
        ranked.save(step, state(float(step)), {"rank": rank})
    ranked.close()
    again = StoredCheckpoints(tmp_path / "ranked")
    assert again.steps() == [2, 4]
    assert again.best() == 2


def test_a_checkpoint_that_the_run_deletes_meanwhile_is_not_the_best(tmp_path, monkeypatch):
    ranked = Checkpoints(tmp_path / "ranked", keep=3, keep_best=True)
    for step, rank in enumerate([0.5, 0.9], start=1):
        ranked.save(step, state(float(step)), {"rank": rank})
    ranked.close()
    stored = StoredCheckpoints(tmp_path / "ranked")
    about = stored.about

    def deleted_first(step):
        shutil.rmtree(tmp_path / "ranked" / "2", ignore_errors=True)
        return about(step)

    monkeypatch.setattr(stored, "about", deleted_first)
    assert stored.best() == 1


def test_the_average_is_that_of_the_parameters(checkpoints):
    values = [1.0, 2.0, 6.0]
    for step, value in enumerate(values, start=1):
        checkpoints.save(step, state(value), {})
    checkpoints._manager.wait_until_finished()
    average = checkpoints.restore_average([1, 2, 3], {"kernel": jnp.zeros((4, 8))})
    assert (average["kernel"] == 3.0).all()


def test_checkpoints_of_the_same_step_differ_in_their_time_of_saving(checkpoints, tmp_path):
    times = []
    for place in (checkpoints, Checkpoints(tmp_path / "other")):
        place.save(1, state(1.0), {})
        place._manager.wait_until_finished()
        times.append(place.saved_at(1))
    assert 0 < times[0] < times[1]
    place.close()


def test_a_parameter_that_the_model_does_not_have_is_named(checkpoints):
    checkpoints.save(3, state(2.0), {})
    checkpoints._manager.wait_until_finished()
    with pytest.raises(UserError, match="contains params/kernel .*, which the model does not have"):
        checkpoints.restore_params(3, {})


@pytest.mark.parametrize("parts", [(), ("state",), ("about",)])
def test_an_incomplete_checkpoint_is_moved_aside(parts, tmp_path):
    directory = tmp_path / "checkpoints"
    for part in parts or (".",):
        (directory / "25" / part).mkdir(parents=True)
    (directory / "25" / "note.txt").write_text("kept")
    assert StoredCheckpoints(directory).steps() == []
    checkpoints = Checkpoints(directory)
    assert checkpoints.steps() == []
    checkpoints.save(25, state(1.0), {})
    checkpoints.close()
    assert StoredCheckpoints(directory).steps() == [25]
    assert (tmp_path / "incomplete_checkpoints" / "25" / "note.txt").read_text() == "kept"


def test_the_latest_checkpoint_of_a_run_is_a_complete_one(checkpoints, tmp_path):
    checkpoints.save(3, state(1.0), {})
    checkpoints.close()
    (tmp_path / "checkpoints" / "25").mkdir()
    assert find_checkpoint(tmp_path) == str(tmp_path / "checkpoints" / "3")


@needs_preload
def test_a_kill_during_a_deletion_leaves_no_half_of_a_checkpoint(
    faults_library, checkpoints, tmp_path
):
    for step in (1, 2):
        checkpoints.save(step, state(1.0), {})
    checkpoints.close()
    directory = tmp_path / "checkpoints"
    program = (
        "import pathlib, sys; from t5lite.training.checkpoint_deleter import CheckpointDeleter; "
        "CheckpointDeleter(pathlib.Path(sys.argv[1])).delete(1)"
    )
    fault = Fault(under=directory, calls=("remove",), at=3)
    environment = {**os.environ, **preloaded(faults_library), **fault.environment(tmp_path / "log")}
    killed = subprocess.run(
        [sys.executable, "-c", program, str(directory)], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert StoredCheckpoints(directory).steps() == [2]
    again = Checkpoints(directory)
    again.save(3, state(1.0), {})
    again.close()
    assert sorted(path.name for path in directory.iterdir()) == ["2", "3"]

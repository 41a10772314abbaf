import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.training.about import decode_about
from t5lite.training.array_checksums import array_checksums
from t5lite.training.base_checkpoint import parameters_fingerprint
from t5lite.training.checkpoints import Checkpoints
from t5lite.training.checksums_item import read_checksums
from t5lite.training.restore import open_checkpoints, resume_latest
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small


def folder_of(run, step=2):
    return pathlib.Path(run.model_dir) / "checkpoints" / str(step)


@pytest.fixture
def moved(tuned, tmp_path):
    """A copy of the run and of its base, and a checkpoint record that names the copy."""
    run = tuned[2]
    base = pathlib.Path(shutil.copytree(run.initial_checkpoint, tmp_path / "base" / "3"))
    copy = shutil.copytree(run.model_dir, tmp_path / "run")
    return dataclasses.replace(run, model_dir=str(copy), initial_checkpoint=str(base)), base


def test_a_checkpoint_of_an_adapter_holds_what_trains_and_names_its_base(tuned):
    base, _, run = tuned
    arrays = read_checksums(folder_of(run)).arrays
    params = {name for name in arrays if name.startswith("params/")}
    assert params
    assert all("/lora_" in name for name in params)
    about = decode_about((folder_of(run) / "about" / "metadata").read_bytes())["base"]
    assert about["checkpoint"] == run.initial_checkpoint
    assert set(about["parameters"]) == set(base)
    of_base = {f"params/{name}": array for name, array in base.items()}
    assert about["fingerprint"] == parameters_fingerprint(array_checksums(of_base), None)
    source = StoredCheckpoints(pathlib.Path(run.initial_checkpoint).parent)
    assert about["fingerprint"] == source.fingerprint(3)


def test_a_checkpoint_is_read_together_with_its_base(tuned):
    _, after, run = tuned
    checkpoints = StoredCheckpoints(folder_of(run).parent)
    program = small.program_of(run)
    params = by_name(jax.device_get(checkpoints.restore_params(2, program.state.params)))
    assert params.keys() == after.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    metadata = checkpoints.metadata(2)
    for name in ("token_embedder/embedding", "decoder/layers/self_attention/query/lora_up"):
        array = checkpoints.restore_array(2, f"params/{name}", metadata)
        np.testing.assert_array_equal(array, after[name])


def test_a_resumed_adapter_equals_an_uninterrupted_one(tuned, make_run, tmp_path):
    run = dataclasses.replace(tuned[2], model_dir=str(tmp_path / "a"), total_steps=4)
    whole = small.train(run)
    again = dataclasses.replace(run, model_dir=str(tmp_path / "b"))
    shutil.copytree(tuned[2].model_dir, again.model_dir)
    resumed = small.train(again)
    for name, value in by_name(whole).items():
        np.testing.assert_array_equal(by_name(resumed)[name], value, err_msg=name)
    saved = read_checksums(folder_of(again, 4)).arrays
    assert saved == read_checksums(folder_of(run, 4)).arrays


def test_a_base_that_was_moved_is_found_by_the_new_name(tuned, moved):
    run, base = moved
    about = StoredCheckpoints(folder_of(run).parent)
    assert about.base(2).checkpoint == tuned[2].initial_checkpoint
    named = StoredCheckpoints(folder_of(run).parent, str(base))
    assert named.base(2).checkpoint == str(base)


def unreadable(run):
    """The run's checkpoints as if the directory of the base that they name were gone."""
    path = folder_of(run).parent.parent / "gone" / "3"
    return StoredCheckpoints(folder_of(run).parent, str(path)), path


def test_a_missing_base_is_named_with_its_remedy(moved):
    checkpoints, path = unreadable(moved[0])
    message = rf"checkpoint .*/2 needs its base {path}, which is not found; name its new location"
    with pytest.raises(UserError, match=message):
        checkpoints.metadata(2)


def test_another_base_is_rejected_with_both_fingerprints(tuned, tmp_path):
    run = tuned[2]
    other = tmp_path / "checkpoints"
    checkpoints = Checkpoints(other, asynchronous=False)
    checkpoints.save(3, {"params": {"x": np.ones(3)}}, {})
    checkpoints.close()
    named = StoredCheckpoints(folder_of(run).parent, str(other / "3"))
    wanted = StoredCheckpoints(pathlib.Path(run.initial_checkpoint).parent).fingerprint(3)
    got = StoredCheckpoints(other).fingerprint(3)
    with pytest.raises(UserError, match=f"needs the base with the fingerprint {wanted},.*{got};"):
        named.restore_array(2, "params/token_embedder/embedding")


def test_damage_of_a_base_is_no_damage_of_its_adapters(moved):
    run, base = moved
    # The next run names the copy as its base.
    next_dir = pathlib.Path(run.model_dir).with_name("next")
    run = dataclasses.replace(run, model_dir=str(next_dir))
    small.train(run)
    (base / "state" / "_METADATA").unlink()
    program = small.program_of(run)
    checkpoints = open_checkpoints(run)
    try:
        with pytest.raises(
            UserError, match=r"/3, the base of checkpoint .* is damaged: .*_METADATA"
        ):
            resume_latest(program, checkpoints, print)
    finally:
        checkpoints.close()
    assert base.is_dir()
    assert folder_of(run).is_dir()

"""Damaged checkpoints: none is loaded with another state, all of them end in one line."""

import dataclasses
import gc
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.training import file_checksums
from t5lite.training.checkpoints import Checkpoints
from t5lite.training.state import TrainState
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests.damages import KINDS, apply_damage, copy_of, outcome_of, random_damages

ABOUT = {"seed": 3, "rank": 0.5}
# Written by version 0.1.0 with `Checkpoints.save(3, golden_state(), {"seed": 7, "rank": 0.25})`.
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "checkpoints_0_1_0"


def golden_state():
    kernel = jnp.arange(12, dtype=jnp.float32).reshape(3, 4) / 7
    tree = {"kernel": kernel, "scale": jnp.full(4, 1.5, jnp.bfloat16)}
    moments = jax.tree.map(lambda x: -x, tree)
    return TrainState(
        step=jnp.int32(3), params=tree, opt_state={"count": jnp.int32(3), "mu": moments}
    )


def some_state(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    tree = {"kernel": jax.random.normal(keys[0], (64, 24)), "scale": jnp.ones(24, jnp.bfloat16)}
    return TrainState(
        step=jnp.int32(4),
        params=tree,
        opt_state={"mu": jax.tree.map(lambda x: x * 0.1, tree), "count": jnp.int32(7)},
    )


def save(directory, *steps, state=None, **options):
    checkpoints = Checkpoints(directory, **options)
    for step in steps:
        checkpoints.save(step, state or some_state(step), ABOUT)
    checkpoints.close()
    return directory / str(steps[-1])


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return save(tmp_path_factory.mktemp("intact"), 4)


@pytest.fixture(scope="module")
def of_large_files(tmp_path_factory):
    """A checkpoint like those with data files of gigabytes, which have no checksums as files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_checksums, "MAX_CHECKED_BYTES", 2000)
        folder = save(tmp_path_factory.mktemp("large"), 4)
    listed = StoredCheckpoints(folder.parent).checksums(4).files
    unlisted = [name for name, (_, crc) in listed.items() if crc is None]
    assert unlisted
    assert all("/d/" in name for name in unlisted)
    return folder


def outcomes_of(checkpoint, folder, count, seed):
    wanted = some_state(4)
    outcomes = {}
    for number, damage in enumerate(random_damages(checkpoint, count, seed)):
        copy = copy_of(checkpoint, folder)
        apply_damage(copy, damage)
        outcomes[damage] = outcome_of(copy, wanted, ABOUT, params_only=bool(number % 4 // 2))
    return outcomes


def assert_detected(outcomes):
    bad = {d: o for d, o in outcomes.items() if o[0] in ("other state", "traceback")}
    assert not bad
    # Damage was done: most files are needed.
    rejected = sum(outcome == "rejected" for outcome, _ in outcomes.values())
    assert rejected > len(outcomes) / 2


def test_an_intact_checkpoint_is_loaded(intact, of_large_files):
    for checkpoint in (intact, of_large_files):
        assert outcome_of(checkpoint, some_state(4), ABOUT) == ("same state", "")


def test_no_damage_is_loaded_silently(of_large_files, tmp_path, seed):
    assert_detected(outcomes_of(of_large_files, tmp_path / "copy", 4 * len(KINDS), seed))


@pytest.mark.proof
def test_no_damage_is_loaded_silently_of_many(intact, of_large_files, tmp_path, seed):
    for checkpoint in (intact, of_large_files):
        assert_detected(outcomes_of(checkpoint, tmp_path / "copy", 20 * len(KINDS), seed))


def damage_arrays(checkpoint):
    """Zeroes the data files that have no checksums, but for their first bytes."""
    for name, (_, crc) in StoredCheckpoints(checkpoint.parent).checksums(4).files.items():
        if crc is None:
            data = (checkpoint / name).read_bytes()
            (checkpoint / name).write_bytes(data[:100] + bytes(len(data) - 100))


@pytest.fixture(params=["unreadable", "different"])
def with_bad_arrays(request, of_large_files, tmp_path, monkeypatch):
    """A checkpoint whose arrays cannot be read, or are not those that were saved."""
    copy = copy_of(of_large_files, tmp_path / "checkpoints")
    stored = StoredCheckpoints(copy.parent)
    if request.param == "unreadable":
        damage_arrays(copy)
        return stored
    expected = {
        name: dataclasses.replace(checksum, value=checksum.value[::-1])
        for name, checksum in stored.checksums(4).arrays.items()
    }
    monkeypatch.setattr(StoredCheckpoints, "_expected", lambda self, step: expected)
    return stored


def test_every_way_of_reading_arrays_checks_them(with_bad_arrays):
    params = some_state().params
    for read in (
        lambda: with_bad_arrays.restore(4, some_state()),
        lambda: with_bad_arrays.restore_params(4, params),
        lambda: with_bad_arrays.restore_average([4, 4], params),
        lambda: with_bad_arrays.restore_part(4, {"params": params}),
        lambda: with_bad_arrays.restore_array(4, "params/kernel"),
    ):
        with pytest.raises(UserError, match=r"^checkpoint .*/4 is damaged: [^\n]*$"):
            read()
    assert with_bad_arrays.about(4) == ABOUT


def test_arrays_are_checked_before_they_are_converted(of_large_files):
    wanted = jax.tree.map(lambda x: x.astype(jnp.bfloat16), some_state(4).params)
    got = StoredCheckpoints(of_large_files.parent).restore_params(4, wanted)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_a_checkpoint_that_has_lost_its_checksums_is_damaged(intact, tmp_path):
    copy = copy_of(intact, tmp_path)
    (copy / "checksums" / "checksums.jsonl").unlink()
    with pytest.raises(UserError, match="is damaged: checksums is missing; use another"):
        StoredCheckpoints(tmp_path).about(4)


def test_a_damaged_best_checkpoint_is_not_deleted(tmp_path, caplog):
    best = save(tmp_path, 1, keep=1, keep_best=True)
    (best / "about" / "metadata").write_text("{}")
    save(tmp_path, 2, 3, 4, keep=1, keep_best=True)
    # The best of those that were complete, and the latest.
    assert StoredCheckpoints(tmp_path).steps() == [1, 3, 4]
    assert "is damaged: about/metadata has 2 bytes" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]", b'{"commit_timestamp_nsecs": "1"}'])
def test_damaged_times_of_orbax_do_not_matter(content, tmp_path, caplog):
    checkpoint = save(tmp_path, 4)
    saved_at = StoredCheckpoints(tmp_path).saved_at(4)
    (checkpoint / "_CHECKPOINT_METADATA").write_bytes(content)
    save(tmp_path, 5)
    assert "_CHECKPOINT_METADATA is damaged and not needed; moved to" in caplog.text
    stored = StoredCheckpoints(tmp_path)
    assert stored.steps() == [4, 5]
    assert stored.saved_at(4) == saved_at
    assert outcome_of(checkpoint, some_state(4), ABOUT) == ("same state", "")


def test_a_checkpoint_of_an_earlier_version_is_read_and_reported(caplog, tmp_path):
    stored = StoredCheckpoints(GOLDEN)
    with caplog.at_level(logging.WARNING):
        state = stored.restore(3, golden_state())
    assert f"{GOLDEN / '3'} has no checksums: damage cannot be detected" in caplog.text
    assert stored.about(3)["seed"] == 7
    assert stored.saved_at(3) > 1_700_000_000_000_000_000
    jax.tree.map(np.testing.assert_array_equal, state, golden_state())


@pytest.mark.proof
def test_reading_damaged_arrays_prints_nothing(of_large_files, tmp_path, capfd):
    copy = copy_of(of_large_files, tmp_path)
    damage_arrays(copy)
    for _ in range(10):
        with pytest.raises(UserError, match="is damaged"):
            StoredCheckpoints(tmp_path).restore(4, some_state())
        gc.collect()
    # asyncio's own log, which commands switch off, is not in these streams.
    assert capfd.readouterr() == ("", "")


def test_an_array_that_was_not_saved_is_named(intact):
    item = {"params": {"kernel": jnp.zeros((64, 24)), "bias": jnp.zeros(24)}}
    with pytest.raises(UserError, match="it does not contain params/bias; use another"):
        StoredCheckpoints(intact.parent).restore_part(4, item)

"""`t5lite inspect --verify`."""

import dataclasses
import json
import pathlib
import shutil
from contextlib import closing

import jax
import optax
import pytest

from t5lite.training.checkpoints import Checkpoints
from tests.training.test_damage import GOLDEN, golden_state


@pytest.fixture
def run_dir(tmp_path):
    """A MODEL_DIR with checkpoints 1 and 2, and an older one without checksums."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, golden_state(), {})
    checkpoints.close()
    shutil.copytree(GOLDEN / "3", tmp_path / "checkpoints" / "3")
    return tmp_path


def test_every_checkpoint_of_a_run_is_verified(run_dir, command):
    code, out, err = command("inspect", f"--checkpoint={run_dir}", "--verify")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    folder = run_dir / "checkpoints"
    assert lines[0] == ["checkpoint", "status", "arrays", "MB"]
    assert lines[1] == [str(folder / "1"), "verified", "6", "0.00"]
    assert lines[3][:5] == [str(folder / "3"), "readable,", "no", "checksums", "6"]
    code, out, _ = command("inspect", f"--checkpoint={folder / '2'}", "--verify", "--json")
    assert code == 0
    (result,) = json.loads(out)["checkpoints"]
    # Twice twelve numbers of four bytes and four of two, and two counts.
    assert result == {
        "checkpoint": str(folder / "2"),
        "step": 2,
        "status": "verified",
        "problem": None,
        "arrays": 6,
        "bytes": 2 * (12 * 4 + 4 * 2) + 2 * 4,
    }


def test_the_state_of_an_optimizer_is_verified(tmp_path, command):
    params = golden_state().params
    # Lists, tuples with names, and parts without arrays.
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    state = dataclasses.replace(golden_state(), opt_state=adamw.init(params))
    with closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(1, state, {})
    code, out, err = command("inspect", f"--checkpoint={tmp_path}", "--verify", "--json")
    assert code == 0, err
    (result,) = json.loads(out)["checkpoints"]
    assert result["status"] == "verified"
    assert result["arrays"] == len(jax.tree.leaves(state))


def test_damage_fails_on_one_line_after_the_table(run_dir, command):
    (run_dir / "checkpoints" / "2" / "state" / "_METADATA").write_bytes(b"")
    code, out, err = command("inspect", f"--checkpoint={run_dir}", "--verify", "--json")
    assert code == 2
    assert [r["status"] for r in json.loads(out)["checkpoints"]] == [
        "verified",
        "damaged",
        "readable, no checksums",
    ]
    assert err.splitlines()[-1].startswith(
        f"t5lite: damaged checkpoints: 1 of 3, first {run_dir / 'checkpoints' / '2'}: "
        "state/_METADATA has 0 bytes instead of "
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint={folder}"], "has no checkpoint; it takes a MODEL_DIR for its latest"),
        (["--checkpoint=best"], "--verify needs --checkpoint=MODEL_DIR or MODEL_DIR/checkpoints"),
        (
            ["--gin_file=gin/run/quickstart.gin"],
            "inspect --verify needs --checkpoint=MODEL_DIR or a checkpoint",
        ),
    ],
)
def test_what_has_no_checkpoint_is_rejected(arguments, message, tmp_path, command):
    words = [word.format(folder=tmp_path) for word in arguments]
    code, _, err = command("inspect", "--verify", *words)
    assert code == 2
    assert message in err


def test_the_folder_of_checkpoints_is_not_read_as_one(run_dir, command):
    folder = pathlib.Path(run_dir, "checkpoints")
    code, _, err = command("inspect", f"--checkpoint={folder}", "--verify")
    assert code == 2
    assert "has no checkpoint" in err

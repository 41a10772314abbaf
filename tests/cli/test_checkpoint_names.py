"""`--checkpoint` has one form for every command."""

import concurrent.futures
import json
import pathlib
import shutil
import threading

import pytest

from t5lite.cli import foreign_checkpoint, selection
from t5lite.cli.selection import ALL, BEST, LATEST, CheckpointName, checkpoint_name
from t5lite.core.errors import UserError
from tests import small


@pytest.mark.parametrize(
    ("text", "folder", "which"),
    [
        ("latest", None, LATEST),
        ("best", None, BEST),
        ("all", None, ALL),
        ("1000,2000", None, "1000,2000"),
        ("./best", "best", LATEST),
        ("runs/a", "runs/a", LATEST),
        ("runs/a:best", "runs/a", BEST),
        ("runs/a:all", "runs/a", ALL),
        ("runs/a:1000", "runs/a", "1000"),
        ("runs/a:b", "runs/a:b", LATEST),
        ("runs/a/checkpoints/7", "runs/a/checkpoints/7", LATEST),
    ],
)
def test_a_name_is_a_folder_and_which_of_its_checkpoints(text, folder, which):
    expected = None if folder is None else pathlib.Path(folder)
    assert checkpoint_name(text) == CheckpointName(expected, which)


def test_a_directory_whose_name_ends_like_a_choice_is_that_directory(tmp_path):
    (tmp_path / "a:best").mkdir()
    assert checkpoint_name(f"{tmp_path}/a:best").folder == tmp_path / "a:best"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, text_file, data_dir):
    """A run with the checkpoints 2 and 4 and a config.gin."""
    run_dir = tmp_path_factory.mktemp("names") / "run"
    small.train(small.run(text_file, data_dir, run_dir, total_steps=4, checkpoint_every_steps=2))
    return run_dir


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("{run}", [4]),
        ("{run}:latest", [4]),
        ("{run}:all", [2, 4]),
        ("{run}:2", [2]),
        ("{run}/checkpoints/2", [2]),
    ],
)
def test_folders_name_their_checkpoints_without_a_run_file(name, steps, run_dir):
    chosen = selection.chosen_checkpoints(None, name.format(run=run_dir), 1)
    assert [one.step for one in chosen] == steps


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", "--checkpoint=best needs the --gin_file of a run, or a MODEL_DIR"),
        ("nowhere", "--checkpoint=nowhere not found; it takes a MODEL_DIR for its latest"),
        ("{run}:3", "has no checkpoint '3'; it has 2, 4"),
        ("{run}:best", "has no ranked checkpoint; train with train.keep_highest"),
        ("{parent}", "has no checkpoint; it takes a MODEL_DIR"),
        ("~nosuchuser/x", "--checkpoint=~nosuchuser/x: .*; name the directory itself"),
    ],
)
def test_a_name_without_a_checkpoint_is_an_error(name, message, run_dir):
    text = name.format(run=run_dir, parent=run_dir.parent)
    with pytest.raises(UserError, match=message):
        selection.chosen_checkpoints(None, text, 1)


def test_inspect_prints_the_model_of_any_named_checkpoint(run_dir, command, tmp_path):
    # Copies, as on another machine.
    moved = tmp_path / "moved"
    shutil.copytree(run_dir, moved)
    for name in (moved, f"{moved}:2", moved / "checkpoints" / "4"):
        code, out, err = command("inspect", f"--checkpoint={name}", "--json")
        assert code == 0, err
        assert json.loads(out)["model"]["architecture"] == "EncoderDecoder"
    code, out, err = command("inspect", f"--checkpoint={moved}")
    assert code == 0, err
    assert "encoder/layers/attention/query/kernel" in out


def test_a_large_hugging_face_folder_names_the_command_that_converts_it(tmp_path, monkeypatch):
    folder = tmp_path / "hf_base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(foreign_checkpoint, "MAX_BYTES", 1)
    with pytest.raises(UserError, match=r"convert it once: t5lite convert --input=\S*hf_base"):
        selection.chosen_checkpoints(None, str(folder), 1)


def test_a_small_hugging_face_folder_is_converted_once_and_kept(tmp_path, monkeypatch, run_dir):
    """The conversion itself has tests of its own."""
    folder = tmp_path / "hf_base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    conversions = []

    def convert(flags, bindings):
        conversions.append(flags.input)
        print("a line that is no result")
        shutil.copytree(run_dir, flags.output)

    monkeypatch.setattr("t5lite.cli.convert.convert_command", convert)
    for _ in range(2):
        (chosen,) = selection.chosen_checkpoints(None, str(folder), 1)
        assert chosen.step == 4
    assert conversions == [str(folder)]
    # Other files are another checkpoint.
    (folder / "model.safetensors").write_text("new")
    selection.chosen_checkpoints(None, str(folder), 1)
    assert len(conversions) == 2


def test_processes_that_name_the_same_hugging_face_folder_convert_it_once(
    tmp_path, monkeypatch, run_dir
):
    folder = tmp_path / "hf_base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    conversions = []
    has_begun = threading.Event()
    may_end = threading.Event()

    def convert(flags, bindings):
        conversions.append(flags.input)
        has_begun.set()
        assert may_end.wait(small.PATIENCE)
        shutil.copytree(run_dir, flags.output)

    monkeypatch.setattr("t5lite.cli.convert.convert_command", convert)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(foreign_checkpoint.converted, folder)
        assert has_begun.wait(small.PATIENCE)
        second = pool.submit(foreign_checkpoint.converted, folder)
        assert concurrent.futures.wait([second], timeout=0.2).not_done
        may_end.set()
        assert first.result() == second.result()
    assert len(conversions) == 1

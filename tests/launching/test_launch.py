"""A launch, and the folder that records it."""

import dataclasses
import json

import pytest

from t5lite.core.errors import UserError
from t5lite.core.run_directory import append_record
from t5lite.launching.engines.shipping import check_wheel
from t5lite.launching.engines.table import engine_of
from t5lite.launching.launch import Launch
from t5lite.launching.launch_files import read_launch, save_launch
from t5lite.launching.launcher_lock import hold_launch
from t5lite.launching.plan import plan_lines


@pytest.fixture
def launch(tmp_path):
    return Launch(
        folder=str(tmp_path / "lr"),
        command="train",
        flags=["--gin_file=a.gin"],
        engine="local",
        working_dir=str(tmp_path),
        space={"AdamW.learning_rate": "[0.1, 0.2]"},
    )


def test_a_held_launch_names_the_commands_that_find_it(tmp_path):
    folder = tmp_path / "lr"
    with (
        hold_launch(folder),
        pytest.raises(UserError, match=f"`t5lite launch status lr --dir={tmp_path}`"),
        hold_launch(folder),
    ):
        raise AssertionError("it is held once")


def test_a_missing_wheel_is_an_error_before_anything_is_packed(launch):
    with pytest.raises(UserError, match="--wheel must be the path of a wheel of t5lite, got 'x'"):
        check_wheel(launch, "x")


def test_a_saved_launch_is_read_back(launch, tmp_path):
    save_launch(launch)
    assert read_launch(tmp_path / "lr") == launch
    assert "folder" not in json.loads((tmp_path / "lr" / "launch.json").read_text())
    # Where it runs is no part of its identity.
    save_launch(dataclasses.replace(launch, engine="slurm", parallel=8, max_failures=0))
    assert launch.arguments(1, launch.planned[1]) == [
        "train",
        "--gin_file=a.gin",
        "--gin.AdamW.learning_rate=0.2",
        f"--gin.MODEL_DIR={tmp_path}/lr/trials/0001",
    ]


def test_the_folder_of_another_launch_is_not_changed(launch, tmp_path):
    save_launch(launch)
    other = dataclasses.replace(launch, space={"AdamW.learning_rate": "[0.1, 0.3]"})
    with pytest.raises(
        UserError, match=r"belongs to another launch: its space is \{'AdamW.*resume lr"
    ):
        save_launch(other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a launch"):
        save_launch(dataclasses.replace(launch, folder=str(tmp_path / "mine")))
    # A launch that was killed as it started starts again.
    (tmp_path / "begun" / "trials").mkdir(parents=True)
    (tmp_path / "begun" / "launch.json.17.tmp").touch()
    save_launch(dataclasses.replace(launch, folder=str(tmp_path / "begun")))
    with pytest.raises(UserError, match=r"no launch 'lrr' found in .*; did you mean 'lr'\?"):
        read_launch(tmp_path / "lrr")


def test_a_list_of_trials_runs_in_its_order(launch):
    listed = [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    with_list = dataclasses.replace(launch, space={}, listed=listed, method="list")
    assert with_list.planned == listed
    with pytest.raises(UserError, match="must bind the same names"):
        dataclasses.replace(with_list, listed=[{"a": 1}, {"b": 1}])
    with pytest.raises(UserError, match="needs a --sweep_file that binds sweep.listed"):
        dataclasses.replace(launch, method="list")
    with pytest.raises(UserError, match="need a --sweep or --sweep_file"):
        dataclasses.replace(launch, space={}, method="quasi", trials=2)


def test_the_objective_is_a_metric_of_any_split(launch):
    metrics = launch.model_dir(0)
    metrics.mkdir(parents=True)
    for step in (2, 4):
        of_training = {"loss": 1.0 * step, "learning_rate": 0.1}
        append_record(metrics / "metrics.jsonl", step=step, split="train", **of_training)
        append_record(
            metrics / "metrics.jsonl", step=step, split="dev", **{"loss": 0.1 * step, "t/f1": 0}
        )
    append_record(metrics / "metrics.jsonl", step=6, split="dev", **{"loss": None, "t/f1": 1})

    def scores(objective):
        return dataclasses.replace(launch, objective=objective).scores(0)

    assert scores("loss") == scores("dev/loss") == [(2, 0.2), (4, 0.4)]
    assert scores("train/loss") == [(2, 2.0), (4, 4.0)]
    assert scores("t/f1") == [(2, 0), (4, 0), (6, 1)]
    with pytest.raises(UserError, match="got 'los'; did you mean 'loss'"):
        scores("los")
    # A metric of training is not a metric of an evaluation.
    with pytest.raises(UserError, match="got 'learning_rate'; known: loss, t/f1"):
        scores("learning_rate")


def test_the_plan_counts_distinct_settings(launch):
    def lines(**changes):
        return plan_lines(dataclasses.replace(launch, **changes))

    assert lines() == ["lr: 2 trials, 2 distinct settings"]
    seeds = {**launch.space, "train.seed": "range(3)"}
    assert lines(space=seeds) == [
        "lr: 6 trials, 6 distinct settings (2 apart from their seeds)",
    ]
    first, second = lines(method="tpe", trials=6)
    assert first == "lr: 2 trials, whose settings tpe chooses"
    assert "exhausted by its 2 settings, so --trials is 2 instead of 6" in second
    assert lines(method="random", trials=6, allow_repeats=True) == [
        "lr: 6 trials, 2 distinct settings",
    ]
    assert lines(space={}) == []


def test_a_launch_of_an_earlier_release_is_read(launch, tmp_path):
    save_launch(launch)
    path = tmp_path / "lr" / "launch.json"
    document = json.loads(path.read_text())
    del document["allow_repeats"]
    requested = {"nodes": 2, "options": ["--account=me"]}
    changes = {"engine": "slurm:gpu", "resources": requested, "method": "tpe", "trials": 6}
    path.write_text(json.dumps({**document, **changes}))
    found = read_launch(tmp_path / "lr")
    # Its trials keep their numbers, repeated ones included.
    assert found.num_trials == 6
    assert "#SBATCH --nodes=2" in engine_of(found).render([0])
    assert "#SBATCH --account=me" in engine_of(found).render([0])


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"command": "train"}', '{"foldr": 1}'])
def test_a_damaged_launch_is_one_line(launch, tmp_path, text):
    save_launch(launch)
    (tmp_path / "lr" / "launch.json").write_text(text)
    with pytest.raises(UserError, match="^[^\n]*launch.json is damaged: [^\n]*; restore it"):
        read_launch(tmp_path / "lr")

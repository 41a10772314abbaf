"""What a launch's folder holds."""

import dataclasses
import json

import pytest

from t5lite.core.errors import UserError
from t5lite.core.run_directory import append_record
from t5lite.launching.launch import Launch, read, save


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


def test_what_is_kept_comes_back(launch, tmp_path):
    save(launch)
    assert read(tmp_path / "lr") == launch
    assert "folder" not in json.loads((tmp_path / "lr" / "launch.json").read_text())
    # Where it runs is no part of what it is.
    save(dataclasses.replace(launch, engine="slurm", parallel=8, max_failures=0))
    assert launch.arguments(1, launch.rows[1]) == [
        "train",
        "--gin_file=a.gin",
        "--gin.AdamW.learning_rate=0.2",
        f"--gin.MODEL_DIR={tmp_path}/lr/trials/0001",
    ]


def test_the_folder_of_another_launch_is_left_alone(launch, tmp_path):
    save(launch)
    other = dataclasses.replace(launch, space={"AdamW.learning_rate": "[0.1, 0.3]"})
    with pytest.raises(UserError, match=r"belongs to another launch: space is \{'AdamW.*resume lr"):
        save(other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is there and holds no launch"):
        save(dataclasses.replace(launch, folder=str(tmp_path / "mine")))
    # One that was killed while it began is begun again.
    (tmp_path / "begun" / "trials").mkdir(parents=True)
    (tmp_path / "begun" / "launch.json.17.tmp").touch()
    save(dataclasses.replace(launch, folder=str(tmp_path / "begun")))
    with pytest.raises(UserError, match="there is no launch 'lrr' in .*; did you mean 'lr'?"):
        read(tmp_path / "lrr")


def test_a_list_of_trials_is_run_as_it_stands(launch):
    listed = [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    with_list = dataclasses.replace(launch, space={}, listed=listed, method="list")
    assert with_list.rows == listed
    with pytest.raises(UserError, match="must all bind the same names"):
        dataclasses.replace(with_list, listed=[{"a": 1}, {"b": 1}])
    with pytest.raises(UserError, match="needs a --sweep_file with sweep.listed"):
        dataclasses.replace(launch, method="list")
    with pytest.raises(UserError, match="are for what --sweep varies"):
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
    with pytest.raises(UserError, match="got 'los'; did you mean 'loss'?"):
        scores("los")
    # What training tells is none of an evaluation.
    with pytest.raises(UserError, match="got 'learning_rate'; known: loss, t/f1"):
        scores("learning_rate")

"""A launch, and the folder that records it."""

import dataclasses
import json
import socket
import subprocess

import pytest

from t5lite.core.errors import UserError
from t5lite.core.run_directory import append_record
from t5lite.launching import launcher_lock
from t5lite.launching.engines.shipping import check_wheel
from t5lite.launching.engines.table import engine_of
from t5lite.launching.launch import Launch
from t5lite.launching.launch_files import LAUNCH_SCHEMA, read_launch, save_launch
from t5lite.launching.launcher_lock import hold_launch, signal_launcher
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


def test_a_launcher_that_ends_before_it_is_asked_to_stop_is_none(tmp_path, monkeypatch):
    process = subprocess.Popen(["true"])
    process.wait()
    with hold_launch(tmp_path / "lr"):
        # The process that held the lock has ended since its number was read.
        holder = f"{process.pid} on {socket.gethostname()}"
        monkeypatch.setattr(launcher_lock, "lock_holder", lambda path: holder)
        assert not signal_launcher(tmp_path / "lr")


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
    (tmp_path / "begun" / "launch.json.tmp").touch()
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
    assert lines(space={"AdamW.b1": "[0.9, 0.8, 0.9]"}, allow_repeats=True) == [
        "lr: 3 trials, 2 distinct settings",
    ]
    assert lines(space={}) == []


def test_repeated_values_need_a_flag(launch):
    with pytest.raises(UserError, match="AdamW.b1 must be different .*; use --allow_repeats"):
        dataclasses.replace(launch, space={"AdamW.b1": "[0.9, 0.8, 0.9]"})


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


def test_the_schema_of_a_launch_names_all_its_fields():
    fields = {field.name for field in dataclasses.fields(Launch)} - {"folder"}
    assert {*LAUNCH_SCHEMA.required, *LAUNCH_SCHEMA.optional} == fields


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flags": "--gin_file=a.gin"}, "the field 'flags' must be a list in which each item is a"),
        ({"parallel": 0}, "the field 'parallel' must be a 64-bit integer of at least 1 or null"),
        (
            {"listed": [{"a": [1]}]},
            "the field 'listed' must be a list in which each item is an",
        ),
        ({"paralel": 2}, "has the unknown field 'paralel'; did you mean 'parallel'?"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(launch, tmp_path, change, message):
    save_launch(launch)
    path = tmp_path / "lr" / "launch.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError) as error:
        read_launch(tmp_path / "lr")
    assert message in str(error.value)


def test_numbers_without_bound_are_rejected(launch):
    with pytest.raises(UserError, match="--trials must be from 1 to 100,000, got 1000000000"):
        dataclasses.replace(launch, method="random", trials=10**9)
    with pytest.raises(UserError, match="--seed must be at least 0, got -1"):
        dataclasses.replace(launch, method="random", trials=2, seed=-1)


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"command": "train"}', '{"foldr": 1}'])
def test_a_damaged_launch_is_one_line(launch, tmp_path, text):
    save_launch(launch)
    (tmp_path / "lr" / "launch.json").write_text(text)
    with pytest.raises(UserError, match="^[^\n]*launch.json is damaged: [^\n]*; restore it"):
        read_launch(tmp_path / "lr")

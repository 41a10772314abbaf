"""Commands that restore what a process has trained."""

import dataclasses
import json
import math
import pathlib
import shutil
import signal
import socket
import types

import jax
import pytest

from t5lite.cli import checkpoint_scorer, score_tables, selection
from t5lite.cli import eval as eval_module
from t5lite.cli.work_progress import WorkProgress
from t5lite.models.description import model_of
from t5lite.training.checkpoint_names import open_checkpoint
from tests import small
from tests.cli.test_commands import SMALL
from tests.faults import Fault, needs_preload, preloaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("infer")


def objects(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def asked(folder):
    path = folder / "asked.jsonl"
    lines = [{"id": n, "inputs": "word " * (n % 7) + f"<extra_id_0> {n}"} for n in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@needs_preload
@pytest.mark.proof
def test_results_are_in_order_despite_kills(t5lite, trained, asked, faults_library, tmp_path):
    def command(name):
        return [
            *("infer", f"--checkpoint={trained}", f"--input={asked}"),
            *(f"--output={tmp_path / name}", "--gin.infer.chunk_size=8"),
            *("--gin.infer.batch_size=8", "--gin.infer.targets_length=12"),
            *("--gin.Decoding.temperature=1.0", "--gin.infer.inputs_length=16"),
        ]

    code, _, err = t5lite(*command("whole.jsonl"))
    assert code == 0, err
    assert "wrote 60 results to" in err
    assert "cut 33 of 60 objects: longer than 16 tokens of inputs or 12 of targets" in err
    for at, lines in ((3, 8), (4, 24), (5, 48)):
        partial = tmp_path / "killed.jsonl.partial"
        # The first write of each attempt drops the line that the previous kill cut short.
        fault = Fault(under=partial, calls=("write",), at=at, torn=True)
        environment = preloaded(faults_library) | fault.environment(tmp_path / "log")
        code, _, err = t5lite(*command("killed.jsonl"), environment=environment)
        assert code == -signal.SIGKILL, err
        # And half of a chunk of eight.
        assert lines <= partial.read_text().count("\n") < lines + 8
    code, _, err = t5lite(*command("killed.jsonl"))
    assert code == 0, err
    assert "resuming after" in err
    whole = objects(tmp_path / "whole.jsonl")
    assert objects(tmp_path / "killed.jsonl") == whole
    assert [line["id"] for line in whole] == list(range(60))
    assert all(line["score"] < 0 for line in whole)


@pytest.mark.proof
def test_two_processes_share_the_work(t5lite, trained, asked, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def command(name):
        return [
            *("infer", f"--checkpoint={trained}", f"--input={asked}", "--mode=predict"),
            *(f"--output={tmp_path / name}", "--gin.infer.targets_length=8"),
        ]

    code, _, err = t5lite(*command("one.jsonl"))
    assert code == 0, err
    together = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    processes = [
        t5lite.start(*command("two.jsonl"), environment={**together, "JAX_PROCESS_ID": str(n)})
        for n in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=small.PATIENCE)
        assert process.returncode == 0, err
    one, two = objects(tmp_path / "one.jsonl"), objects(tmp_path / "two.jsonl")
    assert [line["prediction"] for line in one] == [line["prediction"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)


def test_scores_of_infer_equal_those_of_eval(command, trained, tmp_path):
    given = tmp_path / "in.jsonl"
    lines = [{"inputs": "a b", "targets": "c d"}, {"inputs": "with", "targets": "more"}]
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, err = command(
        *("infer", f"--gin_file={trained}/config.gin", "--mode=score", "--checkpoint=2"),
        *(f"--input={given}", f"--output={tmp_path / 'out.jsonl'}", "--gin.infer.dtype=float32"),
    )
    assert code == 0, err
    results = objects(tmp_path / "out.jsonl")
    # Bytes, and the end.
    assert [result["target_tokens"] for result in results] == [4, 5]
    pairs = tmp_path / "pairs.gin"
    pairs.write_text(
        "evaluate.task = @pairs/Task()\n"
        "evaluate.split = 'test'\n"
        "pairs/Task.name = 'pairs'\n"
        "pairs/Task.source = @pairs/FileSource()\n"
        f"pairs/FileSource.files = {{'test': '{given}'}}\n"
        "pairs/FileSource.fields = ('inputs', 'targets')\n"
        "pairs/Task.inputs = '{inputs}'\n"
        "pairs/Task.targets = '{targets}'\n"
        "pairs/Task.objective = @pairs/Supervised()\n"
        "pairs/Supervised.inputs_length = 16\n"
        "pairs/Supervised.targets_length = 16\n"
    )
    code, out, err = command(
        *("eval", f"--gin_file={trained}/config.gin", f"--gin_file={pairs}"),
        *("--checkpoint=2", "--json", "--gin.T5Config.dtype=float32"),
    )
    assert code == 0, err
    (scores,) = json.loads(out)
    nats = scores["cross_entropy_nats_per_token"] * scores["target_tokens"]
    assert sum(result["score"] for result in results) == pytest.approx(-nats, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=x.jsonl"], "infer needs --input=FILE"),
        (
            ["--input=ASKED", "--output=OUT", "--mode=score", "--gin.Decoding.num_beams=4"],
            "--gin.Decoding.num_beams has no effect with --mode=score; leave it out, or use",
        ),
        (
            ["--input=ASKED", "--output=OUT", "--mode=score", "--gin.infer.num_best=2"],
            "--gin.infer.num_best has no effect with --mode=score",
        ),
        (
            ["--input=ASKED", "--output=OUT", "--gin.infer.targets={answer}"],
            "--gin.infer.targets has no effect with --mode=predict",
        ),
        (
            ["--input=ASKED", "--output=ASKED", "--checkpoint=RUN"],
            "exists; name another file",
        ),
        (
            ["--input=ASKED", "--output=nowhere/x", "--checkpoint=RUN"],
            "must be in an existing directory",
        ),
        (["--input=ASKED", "--output=OUT"], "infer needs --checkpoint=RUN"),
        (
            ["--input=ASKED", "--output=OUT", "--checkpoint=no"],
            "--checkpoint=no not found; it takes a MODEL_DIR",
        ),
        (["--input=gone.txt", "--output=OUT", "--checkpoint=RUN"], "gone.txt"),
        (
            *(["--input=ASKED", "--output=OUT", "--checkpoint=RUN", "--average=9"],),
            "--average=9 needs that many checkpoints up to step 6, got 3",
        ),
        (
            [
                *("--input=ASKED", "--output=OUT", "--checkpoint=RUN"),
                *("--gin.infer.too_long=refuse", "--gin.infer.inputs_length=9"),
            ],
            "objects are longer than 9 tokens of inputs or 128 of targets, first object ",
        ),
        (
            [
                *("--input=ASKED", "--output=OUT", "--checkpoint=RUN"),
                "--gin.Decoding.max_length=500",
            ],
            "Decoding.max_length must be at most infer.targets_length (128), got 500",
        ),
        (
            [
                *("--input=ASKED", "--output=OUT", "--gin_file=RUN/config.gin"),
                "--gin.T5Config.norm_epsilon=1e-5",
            ],
            "was trained with T5Config.norm_epsilon 1e-06, got 1e-05",
        ),
        (
            [
                *("--input=ASKED", "--output=OUT", "--checkpoint=RUN"),
                *(
                    "--gin.infer.vocabulary=@ByteVocabulary()",
                    "--gin.ByteVocabulary.num_sentinels=7",
                ),
            ],
            "num_sentinels=7",
        ),
        (
            ["--input=ASKED", "--output=OUT", "--checkpoint=RUN", "--gin.Decoding.beams=3"],
            "Decoding has no parameter 'beams'; did you mean 'num_beams'",
        ),
    ],
)
def test_a_mistake_of_infer_is_one_line_and_nothing_is_written(
    arguments, message, command, trained, asked, tmp_path
):
    names = {"ASKED": asked, "OUT": tmp_path / "out.jsonl", "RUN": trained}
    for name, path in names.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    before = asked.read_text()
    code, _, err = command("infer", *arguments)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert asked.read_text() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.proof
def test_eval_takes_the_best_and_the_average(command, trained):
    results = []
    for flags in (["--checkpoint=all"], ["--checkpoint=best"], ["--average=3"]):
        code, out, err = command("eval", f"--gin_file={trained}/config.gin", "--json", *flags)
        assert code == 0, err
        results.append(json.loads(out))
    every, (best,), (averaged,) = results
    assert best == min(every, key=lambda result: result["cross_entropy_nats_per_token"])
    assert averaged["averaged_steps"] == [2, 4, 6]
    losses = [result["cross_entropy_nats_per_token"] for result in every]
    assert averaged["cross_entropy_nats_per_token"] not in losses
    assert averaged["cross_entropy_nats_per_token"] < max(losses)


@pytest.mark.proof
def test_a_moved_run_is_scored_and_used_by_its_name_alone(command, trained, asked, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved, ignore=shutil.ignore_patterns("eval"))
    code, out, err = command("eval", f"--checkpoint={moved}:2,6", "--json")
    assert code == 0, err
    assert [result["step"] for result in json.loads(out)] == [2, 6]
    assert len(objects(moved / "eval" / f"{small.EVALUATED}.jsonl")) == 2
    given = tmp_path / "in.jsonl"
    given.write_text('{"inputs": "a"}\n{"input": "b"}\n{"inputs": "c"}\n')
    infer = ("infer", f"--input={given}", f"--checkpoint={moved}/checkpoints/6", "--output=-")
    infer = (*infer, "--gin.infer.targets_length=8", "--gin.infer.batch_size=8")
    code, out, err = command(*infer)
    assert (code, out) == (2, "")
    assert "in.jsonl:2: no string field 'inputs'" in err
    code, out, err = command(*infer, "--gin.infer.bad_objects=skip")
    assert code == 0, err
    assert [json.loads(line)["inputs"] for line in out.splitlines()] == ["a", "c"]
    assert "skipped 1 object, the first: " in err


def test_averages_exist_for_checkpoints_with_enough_before_them(trained):
    chosen = selection.chosen_checkpoints(str(trained), "all", 2)
    assert [one.steps for one in chosen] == [(2, 4), (4, 6)]


def test_scores_of_one_checkpoint_only_are_printed(capsys):
    common = dict.fromkeys(score_tables.LOSS_COLUMNS, 1)
    results = [{**common, "split": "test", "f1/a": 0.25}, {**common, "split": "test", "f1/b": 0.5}]
    score_tables.print_score_tables(results)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["f1/a", "0.25", "-"] in rows
    assert ["f1/b", "-", "0.5"] in rows


@pytest.mark.proof
def test_a_watched_run_is_scored_once_per_checkpoint(t5lite, tmp_path):
    run = tmp_path / "run"
    arguments = [*SMALL, f"--gin.MODEL_DIR={run}", "--gin.train.show_examples=0"]
    watcher = t5lite.start("eval", *arguments, "--watch", "--json")
    try:
        code, _, err = t5lite("train", *arguments)
        assert code == 0, err
        out, err = watcher.communicate(timeout=small.PATIENCE)
    finally:
        # It would wait endlessly for a failed run.
        watcher.kill()
    assert watcher.returncode == 0, err
    steps = [result["step"] for line in out.splitlines() for result in json.loads(line)]
    assert steps == [3, 6]
    record = run / "eval" / f"{small.EVALUATED}.jsonl"
    # As a kill during a write leaves it.
    with record.open("a") as file:
        file.write('{"checkpoint": "hal')
    code, out, err = t5lite("eval", *arguments, "--watch", "--json")
    assert (code, out) == (0, ""), err
    # Another loss gives other results.
    code, out, err = t5lite(
        "eval", *arguments, "--watch", "--json", "--gin.CrossEntropy.z_loss=0.1"
    )
    assert code == 0, err
    steps = [result["step"] for line in out.splitlines() for result in json.loads(line)]
    assert steps == [3, 6]
    lines = record.read_text().splitlines()
    assert len(lines) == 5
    assert [json.loads(line)["step"] for line in [*lines[:2], *lines[3:]]] == [3, 6, 3, 6]


@pytest.mark.parametrize("name", ["{}:best", "{}/checkpoints/2"])
def test_watch_takes_no_single_checkpoint(name, trained, command):
    code, _, err = command("eval", f"--checkpoint={name.format(trained)}", "--watch")
    assert code == 2
    assert f"--checkpoint must be its MODEL_DIR, got {name.format(trained)}" in err


def test_a_checkpoint_that_is_deleted_meanwhile_is_skipped(
    trained, text_file, data_dir, tmp_path, capsys, monkeypatch
):
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    shutil.rmtree(run_dir / "eval", ignore_errors=True)
    run = small.run(text_file, data_dir, run_dir, total_steps=6)
    flags = types.SimpleNamespace(
        checkpoint="latest",
        average=1,
        parameters=None,
        base=None,
        json=True,
        gin_file=["run.gin"],
    )

    def evaluate(params):
        return {"loss_nats_per_token": 1.0, "f1": math.nan}

    def never(params):
        raise AssertionError("its result cannot be recorded")

    read = selection.ChosenCheckpoint.params

    def read_late(chosen, shapes):
        # The training run deletes the checkpoint, slowly, before it is read.
        first = pathlib.Path(chosen.path, "state", "_METADATA")
        if chosen.step == 4 and first.exists():
            first.unlink()
        elif chosen.step == 4:
            shutil.rmtree(chosen.path)
        return read(chosen, shapes)

    monkeypatch.setattr(selection.ChosenCheckpoint, "params", read_late)

    checkpoints, step = open_checkpoint(str(run_dir / "checkpoints" / "2"))
    shapes = as_arrays(checkpoints.metadata(step)["params"])
    run = dataclasses.replace(run, model=model_of(checkpoints.about(step), "it"))
    monkeypatch.setattr(checkpoint_scorer, "RETRY_SECONDS", 0.01)
    scorer = checkpoint_scorer.CheckpointScorer(
        run, evaluate, shapes, {"tasks": ["task"]}, WorkProgress()
    )
    eval_module._watch(scorer, flags)
    found = objects(run_dir / "eval" / "validation.jsonl")
    assert [result["step"] for result in found] == [2, 6]
    # JSON has no NaN.
    assert [result["f1"] for result in found] == [None, None]
    assert "step 4 was deleted before it was scored" in capsys.readouterr().err
    # Nothing is scored that could not be recorded.
    shutil.rmtree(run_dir / "eval")
    (run_dir / "eval").touch()
    scorer = dataclasses.replace(scorer, evaluate=never)
    with pytest.raises(FileExistsError):
        eval_module._score(scorer, flags)


def as_arrays(metadata):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=one), metadata
    )

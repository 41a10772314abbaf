"""Commands as a user runs them: in this process if they end at once, else in their own."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from t5lite.cli.main import COMMANDS
from t5lite.core.run_directory import locked, outcomes
from t5lite.data.text.vocabularies import SentencePieceVocabulary
from tests import small
from tests.faults import Fault, needs_preload, preloaded

ROOT = pathlib.Path(__file__).parent.parent.parent
SMALL = [
    *small.QUICKSTART,
    "--gin.STEPS=6",
    "--gin.train.checkpoint_every_steps=3",
]


MULTITASK = ["--gin_file=gin/run/multitask.gin", "--gin.BATCH_SIZE=4"]


def test_help_is_fast_and_names_every_command(t5lite):
    code, out, err = t5lite("--help", environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert code == 0
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines()}
    assert "t5lite.cli.main" in imported
    # They take seconds.
    assert not imported & {"jax", "numpy", "gin", "grain", "optuna", "tensorflow_datasets"}
    assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["eval"], "eval needs a run file; name a run by --checkpoint=MODEL_DIR, or its run"),
        (["train", "--steps=5"], "train has no flag --steps; use --gin.STEPS=VALUE"),
        (["train", "--model_dir=x"], "use --gin.MODEL_DIR=VALUE"),
        (["train", "--gin_bindings=x"], "bind each parameter by --gin.NAME=VALUE"),
        (["train", "-gin.STEPS=5"], "write two dashes: --gin.STEPS=VALUE"),
        (["train", "--AdamW.b1=0.5"], "parameters are bound by --gin.AdamW.b1=VALUE"),
        (
            ["train", "--gin_file=\udcff.gin"],
            "arguments must be UTF-8, got b'--gin_f",
        ),
        (["train", *SMALL, "--gin.evaluate.splitt=x"], "evaluate has no parameter 'splitt'"),
        (["train", *SMALL, "--gin.infer.foo=1"], "infer has no parameter 'foo'"),
        (["inspect", "--checkpoint=~nosuchuser/run"], "--checkpoint=~nosuchuser/run: "),
        (
            ["convert", "--input=~nosuchuser/x", "--output=y"],
            "a path names the home directory of an unknown user",
        ),
        (["eval", "--checkpoint=nowhere"], "--checkpoint=nowhere has no config.gin"),
        (["train", "--gin_fil=x"], "train has no flag --gin_fil; did you mean 'gin_file'?"),
        (["train"], "needs a run file; try --gin_file=gin/run/quickstart.gin"),
        (["train", "file.gin"], "takes flags only, got 'file.gin'"),
        (["train", "--gin_file=none.gin"], "gin file 'none.gin' not found"),
        (["train", *SMALL, "--gin.Adamw.b1=0.5"], "did you mean 'AdamW'?"),
        (["train", *SMALL, "--gin.MODEL_DIR=/proc/nowhere"], "/proc/nowhere: "),
        (["train", *SMALL, "--gin.MODEL_DIR=setup.cfg"], "setup.cfg: File exists"),
        (["train", *SMALL, "--gin.train.eval_split=tset"], "has no split 'tset'"),
        (
            ["train", *SMALL, "--gin.BATCH_SIZE=6"],
            "train.batch_size: its axis 'batch' must be divis",
        ),
        (["eval", *SMALL, "--gin.MODEL_DIR=nowhere"], "nowhere has no checkpoint"),
        (["eval", *SMALL, "--watch", "--average=2"], "--watch conflicts with --average, got"),
        (["eval", *SMALL, "--watch", "--checkpoint=3"], "leave out one of them"),
        (["launch", "--gin.STEPS=5"], "launch takes no bindings, got --gin.STEPS=5 before --"),
        (["report", "x", "--gin.STEPS=5"], "report takes no bindings, got --gin.STEPS=5"),
        (["report", "x", "--output=~nosuchuser/y"], "--output=~nosuchuser/y: "),
        (["launch", "status", "x", "--dir=~nosuchuser/y"], "--dir=~nosuchuser/y: "),
        (["data", "list", "--count=5"], "--count is for data show, got data list"),
        (["data", "show", *SMALL, "--data_dir=x"], "--data_dir is for data list and data prune"),
        (
            ["data", "list", *SMALL, "--data_dir=x"],
            "--data_dir and --gin_file are mutually exclusive, got --data_dir=x",
        ),
        (["data", "list", "--gin.STEPS=5"], "data list without a --gin_file takes no bindings"),
        (["data", *SMALL], "data takes one of build, show, stats, list, prune, got none"),
        (["data", "shw", *SMALL], "data takes one of build, show, stats, list, prune, got shw"),
        (["data", "show", *SMALL, "--split=test"], "has no split 'test'; known: train, valid"),
        (["data", "stats", *SMALL, "--records=0"], "--records"),
        (
            ["vocab", "--gin_file=gin/run/vocab.gin", "--gin.OUTPUT=/x"],
            "must be a file name that ends in .model",
        ),
        (
            ["vocab", "--gin_file=gin/run/vocab.gin", "--gin.SIZE=9000000"],
            "9000000 is impossible for this text",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, command, tmp_path):
    has_no_run = ("vocab", "convert", "launch", "report")
    takes_run = arguments[0] not in has_no_run and len(arguments) > 2
    if takes_run and not any("MODEL_DIR" in a for a in arguments):
        arguments = [*arguments, f"--gin.MODEL_DIR={tmp_path / 'run'}"]
    code, _, err = command(*arguments)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("t5lite: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


def test_train_then_eval_by_the_config_of_the_run(t5lite, command, tmp_path):
    run = tmp_path / "run"
    code, out, err = t5lite("train", *SMALL, f"--gin.MODEL_DIR={run}")
    assert code == 0, err
    assert f"{small.EVALUATED} at step 0" in out
    assert f"{small.EVALUATED} at step 6" in out
    assert "unigram entropy of the same tokens" in out
    assert out.count("example ") == 3
    code, out, err = t5lite(
        *("eval", f"--gin_file={run}/config.gin", "--checkpoint=all", "--json"),
        "--gin.Mesh.fsdp=4",
        environment={"JAX_NUM_CPU_DEVICES": "4"},
    )
    assert code == 0, err
    results = json.loads(out)
    assert [r["step"] for r in results] == [3, 6]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(m for m in lines if m["split"] == small.EVALUATED and m["step"] == 6)
    assert results[1]["loss_nats_per_token"] == pytest.approx(last["loss_nats_per_token"], rel=1e-5)
    code, _, err = command("eval", f"--gin_file={run}/config.gin", "--checkpoint=4")
    assert code == 2
    assert "has no checkpoint '4'; it has 3, 6" in err


@pytest.mark.proof
def test_determinism_is_verified_and_nothing_is_written(t5lite, tmp_path):
    run = tmp_path / "run"
    code, out, err = t5lite(
        *("train", *SMALL, f"--gin.MODEL_DIR={run}", "--verify_determinism=2"),
        environment={"JAX_NUM_CPU_DEVICES": "2"},
    )
    assert code == 0, err
    assert "deterministic: 2 steps taken again, and once more across a save and restore" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.proof
def test_a_packed_mixture_trains_alike_with_workers_and_resumes(t5lite, tmp_path):
    arguments = [
        *(*MULTITASK, *(a for a in SMALL[1:] if "SpanCorruption" not in a)),
        *("--gin.train.checkpoint_every_steps=4", "--gin.STEPS=8"),
    ]

    def losses(run):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [(m["step"], m["split"], m["loss_nats_per_token"]) for m in lines]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, _, err = t5lite("train", *arguments, f"--gin.MODEL_DIR={whole}")
    assert code == 0, err
    for steps, workers in ((4, 2), (8, 1)):
        code, _, err = t5lite(
            *("train", *arguments, f"--gin.MODEL_DIR={parts}"),
            *(f"--gin.train.total_steps={steps}", f"--gin.train.data_workers={workers}"),
        )
        assert code == 0, err
    # The shorter run was scored at its own end too.
    assert [m for m in losses(parts) if m[:2] != (4, small.EVALUATED)] == losses(whole)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    scores = next(m for m in lines if m["split"] == small.EVALUATED)
    tokens = [scores[f"{task}/target_tokens"] for task in ("spans", "ul2", "topics")]
    assert sum(tokens) == scores["target_tokens"]


def latest_step(model_dir):
    names = [path.name for path in (model_dir / "checkpoints").iterdir()]
    return max(int(name) for name in names if name.isdigit())


@needs_preload
@pytest.mark.proof
def test_a_stopped_or_killed_run_resumes_bitwise(t5lite, faults_library, tmp_path):
    def losses(run):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [(m["step"], m["split"], m["loss_nats_per_token"]) for m in lines]

    arguments = [*SMALL, "--gin.STEPS=30", "--gin.train.show_examples=0"]
    code, _, err = t5lite("train", *arguments, f"--gin.MODEL_DIR={tmp_path / 'whole'}")
    assert code == 0, err
    killed = tmp_path / "killed"
    metrics = killed / "metrics.jsonl"
    for at, then in ((5, "SIGKILL"), (8, "SIGTERM"), (11, "SIGKILL")):
        fault = Fault(under=metrics, calls=("write",), at=at, then=then, torn=True)
        environment = preloaded(faults_library) | fault.environment(tmp_path / "log")
        code, _, err = t5lite(
            *("train", *arguments, f"--gin.MODEL_DIR={killed}"), environment=environment
        )
        assert code == (42 if then == "SIGTERM" else -signal.SIGKILL), err
    step = latest_step(killed)
    assert not (killed / "result.json").exists()
    code, out, err = t5lite("train", *arguments, f"--gin.MODEL_DIR={killed}")
    assert code == 0, err
    assert f"resuming at step {step}" in out
    assert losses(killed) == losses(tmp_path / "whole")
    assert outcomes(killed) == {
        "finished": 1,
        "preempted": 1,
        "unavailable": 0,
        "stalled": 0,
        "rejected": 0,
        "failed": 0,
        "killed": 2,
    }
    result = json.loads((killed / "result.json").read_text())
    assert result["step"] == result["scores"][small.EVALUATED]["step"] == 30
    assert result == json.loads((tmp_path / "whole" / "result.json").read_text())


@pytest.mark.proof
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_several_processes_stop_at_the_same_step_if_one_is_signalled(number, t5lite, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    arguments = [*SMALL, "--gin.STEPS=100000", "--gin.train.checkpoint_every_steps=100000"]
    processes = [
        t5lite.start(
            *("train", *arguments, f"--gin.MODEL_DIR={tmp_path}"),
            environment={
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
        )
        for index in range(2)
    ]
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and '"step": 3,' in metrics.read_text()):
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.05)
    processes[1].send_signal(number)
    errors = [process.communicate(timeout=small.PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [42, 42], errors
    step = latest_step(tmp_path)
    assert all(f"t5lite: stopped at step {step}, which is saved" in error for error in errors)
    assert outcomes(tmp_path) == {
        "finished": 0,
        "preempted": 1,
        "unavailable": 0,
        "stalled": 0,
        "rejected": 0,
        "failed": 0,
        "killed": 0,
    }


def test_a_locked_run_names_the_process_that_trains_it(command, tmp_path):
    with locked(tmp_path):
        code, _, err = command("train", *SMALL, f"--gin.MODEL_DIR={tmp_path}")
    assert code == 69
    assert f"{tmp_path} is being trained by process {os.getpid()} on" in err


def test_data_is_built_shown_and_counted(t5lite, command, tmp_path):
    code, out, err = t5lite("data", "build", *MULTITASK)
    assert code == 0, err
    assert [line.split(":")[0] for line in out.splitlines()] == [
        f"{task} {split}"
        for task in ("spans", "ul2", "topics")
        for split in ("train", "validation")
    ]
    code, out, err = command("data", "show", *MULTITASK, "--count=2")
    assert code == 0, err
    assert [out.count(f"task {name}, train") for name in ("spans", "ul2", "topics")] == [1, 1, 1]
    assert out.count("of the first batch") == 2
    assert "topic: " in out
    code, out, err = command("data", "stats", *MULTITASK, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["tasks"].keys() == {"spans", "ul2", "topics"}
    assert sum(task["rate"] for task in found["tasks"].values()) == pytest.approx(1.0)
    assert found["tasks"]["topics"]["lengths"]["inputs"]["cut_fraction"] == 1.0
    assert 0.9 < found["rows"]["fill_fraction"]["encoder"] <= 1.0
    code, out, err = command("data", "stats", *MULTITASK)
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 100
    assert "topics inputs" in out


@pytest.mark.parametrize("arguments", [["--help"], ["launch", "--help"]], ids=" ".join)
def test_a_closed_pipe_is_no_error_of_help(arguments, t5lite):
    with t5lite.start(*arguments) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert err == ""


def test_a_closed_pipe_is_no_error(t5lite):
    with t5lite.start("data", "stats", *MULTITASK, "--json") as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    assert "Broken pipe" not in err
    assert "BrokenPipe" not in err


def test_a_trained_vocabulary_encodes(t5lite, command, tmp_path):
    path = tmp_path / "runs" / "new" / "python.model"
    arguments = ["vocab", "--gin_file=gin/run/vocab.gin", f"--gin.OUTPUT={path}"]
    symbols = "--gin.vocab.user_symbols=['[NLU]', '[S2S]']"
    code, out, err = t5lite(*arguments, "--gin.SIZE=1000", symbols)
    assert code == 0, err
    assert f"{path}: 1,000 pieces" in out
    vocabulary = SentencePieceVocabulary(path=str(path), num_sentinels=10)
    assert vocabulary.size == 1010
    assert len(vocabulary.encode("[NLU]")) <= 2
    # Bytes stand for what has no piece.
    for text in ("The with statement", "\u65e5\u672c"):
        assert vocabulary.decode(vocabulary.encode(text)) == text
    code, _, err = command(*arguments)
    assert code == 2
    assert "exists; choose another file name" in err


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_training_uses_huge_pages(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-m", "t5lite", "train", "--gin_file=gin/run/quickstart.gin"]
    process = subprocess.Popen([*command, f"--gin.MODEL_DIR={tmp_path}"], env=environment, cwd=ROOT)
    try:
        begun = time.monotonic()
        # The same process, begun once more.
        while b"malloc.hugetlb=1" not in pathlib.Path(f"/proc/{process.pid}/environ").read_bytes():
            assert time.monotonic() < begun + small.PATIENCE
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()

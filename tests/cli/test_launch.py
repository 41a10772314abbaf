"""Sweeps on this machine, as a user starts them."""

import json
import signal
import subprocess
import sys
import time

import pytest

from t5lite.core.run_directory import outcomes, read_metrics
from t5lite.launching.launch import Launch
from t5lite.launching.launch_files import save_launch
from t5lite.launching.processes import t5lite_command
from tests import small
from tests.cli.test_commands import SMALL
from tests.faults import Fault, needs_preload, preloaded
from tests.proofs import proof

SWEEP = ["--sweep=Cosine.learning_rate=log(1e-4, 1e-2, 2)", "--sweep=train.seed=range(2)"]
TRAIN = ["--", *SMALL, "--gin.train.show_examples=0"]


@pytest.fixture
def launch(t5lite, command, tmp_path):
    def arguments(*words):
        end = words.index("--") if "--" in words else len(words)
        return ["launch", *words[:end], f"--dir={tmp_path}", *words[end:]]

    def run(*words, **options):
        return t5lite(*arguments(*words), **options)

    run.here = lambda *words: command(*arguments(*words))
    run.start = lambda *words, **options: t5lite.start(*arguments(*words), **options)
    return run


def results(launch, name):
    code, out, err = launch.here("results", name, "--json")
    assert code == 0, err
    return json.loads(out)


KILL = signal.SIGKILL
ASK = signal.SIGTERM


@pytest.mark.proof
def test_a_sweep_that_is_killed_repeatedly_ends_as_an_undisturbed_one(launch, tmp_path):
    count = 4
    code, out, err = launch("--on=local", "--name=whole", "--parallel=2", *SWEEP, *TRAIN)
    assert code == 0, err
    whole = results(launch, "whole")
    assert [trial["state"] for trial in whole["trials"]] == ["complete"] * count
    best = min(whole["trials"], key=lambda trial: trial["value"])
    assert whole["best"] == best["trial"]
    assert f"best: trial {best['trial']}, cross_entropy_nats_per_token {best['value']:.6g}" in out

    killed = tmp_path / "killed"
    for begun, number in ((1, KILL), (2, ASK), (3, KILL)):
        process = launch.start("--on=local", "--name=killed", "--parallel=2", *SWEEP, *TRAIN)
        while len(list(killed.glob("trials/*/metrics.jsonl"))) <= begun:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        if number == signal.SIGTERM:
            assert "asked to save and stop" in launch("cancel", "killed")[1]
        else:
            process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == (42 if number == signal.SIGTERM else -signal.SIGKILL)
        if number == signal.SIGTERM:
            assert "resume with: t5lite launch resume killed" in err
    code, _, err = launch("resume", "killed", "--parallel=2")
    assert code == 0, err
    assert results(launch, "killed")["best"] == whole["best"]
    for one, other in zip(results(launch, "killed")["trials"], whole["trials"], strict=True):
        for name in ("state", "params", "step", "value"):
            assert one[name] == other[name]
    for folder in (killed / "trials").iterdir():
        assert outcomes(folder)["finished"] == 1
    code, out, _ = launch("status", "killed")
    assert code == 0
    assert out.count("complete") == count
    assert "==> " in launch("logs", "killed")[1]
    assert f"all {count} trials have ended" in launch("resume", "killed")[1]


@needs_preload
@pytest.mark.proof
def test_a_vectorized_sweep_equals_separate_runs(launch, t5lite, faults_library, tmp_path):
    # The command of the second trial, alone.
    single = [
        *("train", *SMALL, "--gin.train.show_examples=0", f"--gin.MODEL_DIR={tmp_path}/alone"),
        *("--gin.Cosine.learning_rate=0.0001", "--gin.train.seed=1", "--gin.STEPS=40"),
    ]
    assert t5lite(*single)[0] == 0
    words = ["--on=local", "--name=many", "--vectorized=3", *SWEEP, *TRAIN, "--gin.STEPS=40"]
    metrics = tmp_path / "many" / "trials" / "0001" / "metrics.jsonl"
    # Before the first checkpoint, and in a later step of the next attempt.
    for at, then in ((5, "SIGKILL"), (12, "SIGTERM")):
        fault = Fault(under=metrics, calls=("write",), at=at, then=then)
        environment = preloaded(faults_library) | fault.environment(tmp_path / "log")
        code, _, err = launch(*words, environment=environment)
        assert code == (42 if then == "SIGTERM" else -signal.SIGKILL), err
    code, out, err = launch("resume", "many")
    assert code == 0, err
    found = results(launch, "many")["trials"]
    assert [trial["state"] for trial in found] == ["complete"] * 4
    assert [trial["step"] for trial in found] == [40] * 4
    assert [(t["preempted"], t["failed"]) for t in found[:3]] == [(1, 1)] * 3
    assert found[3]["preempted"] == found[3]["failed"] == 0
    together, alone = (
        {(m["step"], m["split"]): m["loss_nats_per_token"] for m in read_metrics(folder)}
        for folder in (tmp_path / "many" / "trials" / "0001", tmp_path / "alone")
    )
    assert together == pytest.approx(alone, rel=1e-4)
    # Each trial is a run of its own.
    folder = tmp_path / "many" / "trials" / "0003"
    code, out, err = t5lite("eval", f"--gin_file={folder}/config.gin", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["step"] == 40


@pytest.mark.proof
def test_bad_trials_are_pruned_and_diverged_trials_fail(launch):
    code, out, err = launch(
        *("--on=local", "--name=pruned", "--prune=asha", "--parallel=1"),
        # The last one diverges.
        "--sweep=Cosine.learning_rate=[1e-2, 1e-5, 1e30]",
        *(*TRAIN, "--gin.train.eval_every_steps=10", "--gin.STEPS=60"),
    )
    assert code == 1, out
    assert "failed: 2" in err
    states = [trial["state"] for trial in results(launch, "pruned")["trials"]]
    assert states == ["complete", "pruned", "failed"]
    assert results(launch, "pruned")["trials"][1]["step"] < 60


@pytest.mark.parametrize("processes", [1, proof(2)])
def test_a_launch_without_a_sweep_trains_one_run(processes, launch, tmp_path):
    code, out, err = launch("--on=local", "--name=two", f"--processes={processes}", *TRAIN)
    assert code == 0, err
    assert out.startswith("trial 0: started\ntrial 0: complete  ")
    # Only one of the processes logs.
    log = (tmp_path / "two" / "trials" / "0000" / "log.txt").read_text()
    assert log.count("step 6/6") == 1


@pytest.mark.proof
def test_a_sweep_whose_run_file_has_changed_does_not_resume(launch, tmp_path):
    path = tmp_path / "my.gin"
    path.write_text("include 'gin/run/quickstart.gin'\nT5Config.dropout_rate = 0.1\n")
    words = ["--on=local", "--name=a"]
    train = [*TRAIN[:1], f"--gin_file={path}", *TRAIN[2:]]
    process = launch.start(*words, *train)
    while not list(tmp_path.glob("a/trials/0000/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    path.write_text("include 'gin/run/quickstart.gin'\nT5Config.dropout_rate = 0.3\n")
    code, _, err = launch("resume", "a")
    assert code == 2
    assert "the run files of a have changed since it started" in err
    code, _, err = launch(*words, *train)
    assert code == 2
    assert "a belongs to another launch: its config is" in err
    path.write_text("include 'gin/run/quickstart.gin'\nT5Config.dropout_rate = 0.1\n")
    code, _, err = launch("resume", "a")
    assert code == 0, err


@pytest.mark.proof
@pytest.mark.parametrize("more", [[], ["--vectorized=2"]], ids=str)
def test_an_unknown_objective_stops_the_launch_at_the_first_evaluation(more, launch):
    words = ["--on=local", "--name=b", "--minimize=exact_mach", *more]
    code, _, err = launch(*words, "--sweep=train.seed=range(2)", *TRAIN, "--gin.STEPS=100000")
    assert code == 2
    assert "the objective must be a metric of the run, got 'exact_mach'" in err


@pytest.mark.proof
def test_ctrl_c_saves_all_vectorized_trials(launch, tmp_path):
    words = ["--on=local", "--name=c", "--vectorized=2", "--sweep=DROPOUT=[0.0, 0.1]"]
    train = [*TRAIN, "--gin.STEPS=100000", "--gin.train.log_every_steps=1"]
    macro = tmp_path / "macro.gin"
    macro.write_text("DROPOUT = 0.0\nT5Config.dropout_rate = %DROPOUT\n")
    process = launch.start(*words, *train, f"--gin_file={macro}")
    metrics = tmp_path / "c" / "trials" / "0001" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 5,' in metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=small.PATIENCE)
    assert process.returncode == 42, err
    assert "saving; Ctrl-C again to stop at once" in err
    for number in range(2):
        folder = tmp_path / "c" / "trials" / f"000{number}"
        saved = max(int(path.name) for path in folder.glob("checkpoints/[0-9]*"))
        assert saved == read_metrics(folder)[-1]["step"]
        assert outcomes(folder)["preempted"] == 1


def test_a_trial_whose_launcher_is_gone_does_not_start():
    command = t5lite_command(["train"], parent=1)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the launcher, process 1, is gone" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on=loacl", "--name=a", *TRAIN], "--on is unknown: got 'loacl'; did you mean 'local'?"),
        (["--on=local", *TRAIN], "launch needs --name"),
        (
            ["--on=local", "--name=my sweep", *TRAIN],
            "--name must consist of letters, digits and . _ -",
        ),
        (["--on=local", "--name=../a", *TRAIN], "--name must consist of letters, digits and . _ -"),
        (["--on=slrum:gpu", "--name=a", *TRAIN], "cannot be imported: No module named 'slrum'"),
        (["--on=local:x", "--name=a", *TRAIN], "--on=local takes nothing after its name"),
        (["--on=slurm", "--vectorized=2", "--name=a", *TRAIN], "--vectorized is for --on=local"),
        (
            ["--on=local", "--processes=2", "--vectorized=2", "--name=a", *TRAIN],
            "--vectorized and --processes are mutually exclusive",
        ),
        (
            ["--on=slurm", "--time_limit=1:00\n", "--name=a", *TRAIN],
            "--time_limit must be a time such as 30, 12:00:00 or 2-12:00:00, got '1:00\\n'",
        ),
        (["--on=local", "--name=a", "--spot", *TRAIN], "--spot is for --on=tpu or gke, got local"),
        (
            ["--on=tpu:tpu7x-64", "--zone=z", "--name=a", *TRAIN],
            "is offered on GKE only: --on=gke:tpu7x-64",
        ),
        (
            ["--on=tpu:v5e-17", "--zone=z", "--name=a", *TRAIN],
            "a slice of v5e must be v5e-N with the number of",
        ),
        (["--on=local", "--name=a"], "launch needs the flags of t5lite train after --"),
        (["--on=local", "--name=a", "--", "tarin", "-x"], "did you mean 'train'?"),
        (
            ["--on=local", "--name=a", "--", "eval", "--chekpoint=x"],
            "eval has no flag --chekpoint; did you mean 'checkpoint'?",
        ),
        (["--on=local", "--name=a", "--", "infer", "in.txt"], "takes flags only, got 'in.txt'"),
        (["--on=local", "--name=a", *TRAIN, "--gin.MODEL_DIR=x"], "leave out --gin.MODEL_DIR"),
        (
            ["--on=local", "--name=a", "--sweep=Cosine.learning_rat=[1.0]", *TRAIN],
            "Cosine has no parameter 'learning_rat'; did you mean 'learning_rate'?",
        ),
        (
            ["--on=local", "--name=a", "--sweep=T5Config.dropout_rate=[0.0, 1.5]", *TRAIN],
            "T5Config.dropout_rate must be in [0, 1), got 1.5",
        ),
        (
            ["--on=local", "--name=a", "--sweep=train.seed=range(2)", *TRAIN, "--gin.SEED=3"],
            "SEED binds nothing",
        ),
        (
            ["--on=local", "--name=a", "--sweep=train.seed=range(0)", *TRAIN],
            "the list of values of train.seed is empty, got range(0)",
        ),
        (["--on=local", "--name=a", "--prune=asha", *TRAIN], "bind train.eval_every_steps"),
        (
            [
                *("--on=local", "--name=a", "--vectorized=2"),
                *("--sweep=T5Config.mlp_dim=[8, 16]", *TRAIN),
            ],
            "runs of one program need the same model",
        ),
        (["--on=local", "--name=a", "--seed=3", *TRAIN], "--seed is for --method=random or quasi"),
        (["--on=local", "--name=a", "--json", *TRAIN], "--json is for launch status and results"),
        (["status", "nothing"], "no launch 'nothing' found in"),
        (["status", "a", "b"], "launch status takes one NAME, got a b"),
        (["status", "a", "--trial=1"], "launch status takes --dir and --json, got --trial"),
        (
            ["resume", "a", "--max_failures=9"],
            "launch resume takes --dir and --parallel, got --max_failures; the launch keeps",
        ),
        (["statsu", "nothing"], "did you mean 'status'?"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(launch, tmp_path, words, message):
    code, _, err = launch.here(*words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_logs_of_a_trial_that_the_launch_does_not_have_are_an_error(launch, tmp_path):
    folder = str(tmp_path / "a")
    save_launch(
        Launch(folder=folder, command="train", flags=[], engine="local", working_dir=folder)
    )
    assert launch.here("logs", "a")[:2] == (0, "trial 0: not started\n")
    code, _, err = launch.here("logs", "a", "--trial=1")
    assert (code, err) == (2, "t5lite: --trial must be under 1, got 1\n")


def test_a_missing_slurm_is_one_line(launch):
    process = launch.start("--on=slurm", "--name=a", *TRAIN, environment={"PATH": "/nowhere"})
    _, err = process.communicate(timeout=small.PATIENCE)
    assert process.returncode == 2
    assert "sbatch not found: this machine has no Slurm" in err


def test_a_sweep_file_lists_trials(launch, tmp_path):
    path = tmp_path / "trials.gin"
    path.write_text(
        "sweep.listed = [{'Cosine.learning_rate': 0.1, 'train.seed': 3},\n"
        "                {'Cosine.learning_rate': 0.2, 'train.seed': 4}]\n"
    )
    words = ["--on=local", "--name=a", f"--sweep_file={path}", "--dry_run"]
    code, out, err = launch.here(*words, *TRAIN)
    assert code == 0, err
    plan, *commands = out.splitlines()
    assert plan == "# a: 2 trials, 2 distinct settings (2 apart from their seeds)"
    assert [line.split()[-3:-1] for line in commands] == [
        ["--gin.Cosine.learning_rate=0.1", "--gin.train.seed=3"],
        ["--gin.Cosine.learning_rate=0.2", "--gin.train.seed=4"],
    ]
    code, _, err = launch.here(*words, "--trials=1", *TRAIN)
    assert (code, err) == (2, "t5lite: --trials of sweep.listed must be 2, got 1\n")
    code, _, err = launch.here(*words, "--method=random", *TRAIN)
    assert code == 2
    assert "sweep.listed names the settings, got --method=random" in err
    path.write_text("sweep.values = {'Cosine.learning_rate': 'log(0.1, 1.0)'}\nsweep.trials = 3\n")
    code, out, err = launch.here(*words, *TRAIN)
    assert code == 0, err
    assert len(out.splitlines()) == 1 + 3
    path.write_text("sweep.trials = 3\n")
    code, _, err = launch.here(*words, *TRAIN)
    assert code == 2
    assert "a sweep file needs either sweep.values or sweep.listed" in err


def test_sampling_stops_when_the_search_space_is_exhausted(launch):
    words = ["--on=local", "--name=a", "--method=tpe", "--trials=6", "--dry_run"]
    code, out, err = launch.here(*words, "--sweep=Cosine.learning_rate=[0.1, 0.2]", *TRAIN)
    assert code == 0, err
    assert "exhausted by its 2 settings, so --trials is 2 instead of 6" in out
    assert out.count("t5lite train") == 2


@pytest.mark.parametrize(
    "start",
    [t5lite_command([]), [sys.executable, "-m", "t5lite"]],
    ids=["trial", "python -m t5lite"],
)
def test_modules_of_the_working_directory_never_replace_standard_ones(start, tmp_path):
    (tmp_path / "queue.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "mine.py").write_text(
        "from t5lite.launching.engines.local import LocalEngine\n"
        "class MyEngine(LocalEngine):\n    pass\n"
    )

    def run(*words):
        command = [*start, "launch", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert run("status", "nothing") == (
        2,
        f"t5lite: no launch 'nothing' found in {tmp_path}/runs; it holds no launch\n",
    )
    # Modules of the user are found there nevertheless.
    code, out = run("--on=mine:MyEngine", "--help")
    assert code == 0, out
    assert "--on=mine:MyEngine:" in out

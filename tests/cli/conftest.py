import logging
import os
import pathlib
import subprocess
import sys

import pytest

from t5lite.cli.main import main
from tests import small
from tests.forks import ForkServer

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def t5lite(run_t5lite):
    """Runs a command in the checkout, as a process with one device."""
    return run_t5lite


@pytest.fixture(scope="session")
def server(one_device, tmp_path_factory):
    """Of the commands that need no environment of their own."""
    environment = {**one_device, "COLUMNS": "200"}
    made = ForkServer(tmp_path_factory.mktemp("outputs"), environment)
    yield made
    made.close()


@pytest.fixture(scope="session")
def run_t5lite(one_device, request):
    """The same for fixtures of a session."""

    def start(*arguments, environment=None):
        return subprocess.Popen(
            [sys.executable, "-m", "t5lite", *arguments],
            cwd=ROOT,
            env={**os.environ, **one_device, "COLUMNS": "200", **(environment or {})},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(*arguments, environment=None):
        if environment is None:
            ended = request.getfixturevalue("server").run(*arguments)
            return ended.status, ended.out, ended.err
        process = start(*arguments, environment=environment)
        out, err = process.communicate(timeout=small.PATIENCE)
        return process.returncode, out, err

    run.start = start
    return run


class _Exit(Exception):
    """The command ended its process."""


@pytest.fixture
def command(monkeypatch, capsys, data_dir):
    """Runs a command in this process, with its eight devices: status, output and errors."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    loggers = [logging.getLogger(name) for name in ("t5lite", "absl")]
    before = [(each.level, each.propagate, [*each.handlers]) for each in loggers]

    def leave(status):
        raise _Exit(status)

    monkeypatch.setattr(os, "_exit", leave)

    def run(*arguments):
        capsys.readouterr()
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except _Exit as ended:
            (status,) = ended.args
        except SystemExit as ended:
            status = ended.code
        out, err = capsys.readouterr()
        return status, out, err

    yield run
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def trained(run_t5lite, make_once):
    """A run of six steps with the checkpoints 2, 4 and 6, each scored; tests only read it."""

    def train(folder):
        code, _, err = run_t5lite(
            *("train", *small.QUICKSTART, "--gin.STEPS=6", f"--gin.MODEL_DIR={folder}"),
            *("--gin.train.checkpoint_every_steps=2", "--gin.train.eval_every_steps=2"),
            "--gin.train.keep_lowest=cross_entropy_nats_per_token",
            "--gin.train.show_examples=0",
        )
        assert code == 0, err

    return make_once("quickstart", train)

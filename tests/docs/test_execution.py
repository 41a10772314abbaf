"""The executable blocks of the manual run, each page in a directory of its own."""

import contextlib
import io
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from t5lite.cli.main import main
from tests.docs.pages import MANUAL, ROOT, blocks, steps

# Makes a documented run that builds on quickstart.gin take seconds; the flags of the page stand.
SMALL_RUN = (
    "--gin.STEPS=2",
    "--gin.BATCH_SIZE=8",
    "--gin.T5Config.embed_dim=16",
    "--gin.T5Config.mlp_dim=16",
    "--gin.T5Config.num_heads=2",
    "--gin.T5Config.head_dim=8",
    "--gin.T5Config.num_encoder_layers=1",
    "--gin.T5Config.num_decoder_layers=1",
    "--gin.train.show_examples=0",
    "--gin.train.eval_split=validation[:3]",
)


def executed() -> Iterator[Any]:
    """Pages with commands to run; those that compile a program of their own are proofs."""
    for path in MANUAL:
        commands = [block.text for block in blocks(path) if block.runs]
        if commands:
            name = str(path.relative_to(ROOT / "docs"))
            is_proof = name.startswith("add/") and any("t5lite train" in c for c in commands)
            yield pytest.param(path, id=name, marks=[pytest.mark.proof] if is_proof else [])


class Exit(Exception):
    """The command ended the process with this status."""


@pytest.fixture
def directory(
    tmp_path: pathlib.Path, data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pathlib.Path]:
    """An empty current directory; modules that the page defines are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [*sys.path])

    def leave(status: int) -> None:
        raise Exit(f"exit status {status}")

    # A failing command would end the process of the tests.
    monkeypatch.setattr(os, "_exit", leave)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run_command(words: list[str]) -> str:
    """Runs a command of the manual in this process and returns what it prints."""
    arguments = words[1:]
    if arguments[0] == "train":
        own = {word.partition("=")[0] for word in arguments}
        small = [word for word in SMALL_RUN if word.partition("=")[0] not in own]
        arguments += small
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(arguments)
        except Exit as exit:
            pytest.fail(f"{' '.join(words)}: {exit}\n{printed.getvalue()}")
        except SystemExit as exit:
            if exit.code:
                pytest.fail(f"{' '.join(words)}: exit status {exit.code}\n{printed.getvalue()}")
    return printed.getvalue()


@pytest.mark.parametrize("path", list(executed()))
def test_blocks_of_a_page_run(
    path: pathlib.Path, directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in blocks(path):
        if block.file:
            file = directory / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.language == "python" and block.runs:
            monkeypatch.syspath_prepend(directory)
            exec(compile(block.text, str(path), "exec"), {})
        elif block.language == "console" and block.runs:
            for words, output in steps(block):
                assert words[0] == "t5lite", words
                printed = run_command(words)
                for line in output:
                    assert line.strip(" .") in printed, f"{line!r} not in:\n{printed}"

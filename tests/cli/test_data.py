"""What `t5lite data` prints: examples, counts of their tokens, statistics, built data sets."""

import dataclasses
import io
import logging
import pathlib
import sys

import pytest
import rich.console

from t5lite.cli import data
from t5lite.cli.quiet import quiet_libraries
from t5lite.data.sources.file_source import FileSource
from t5lite.data.task import Task
from t5lite.data.text.vocabularies import ByteVocabulary, SentencePieceVocabulary
from t5lite.objectives.supervised import Supervised
from tests import small


@pytest.fixture
def console():
    return rich.console.Console(file=io.StringIO(), width=120, highlight=False, soft_wrap=True)


def run_of(tmp_path, text_file, line, vocabulary):
    (tmp_path / "pairs.tsv").write_text(line)
    task = Task(
        source=FileSource(
            files={"train": str(tmp_path / "pairs.tsv")},
            fields=("inputs", "targets"),
            data_dir=str(tmp_path / "tfds"),
        ),
        vocabulary=vocabulary,
        objective=Supervised(inputs_length=32, targets_length=32),
        inputs="{inputs}",
        targets="{targets}",
    )
    run = small.run(text_file, str(tmp_path), tmp_path / "run")
    config = dataclasses.replace(run.model.config, vocab_size=1024)
    return dataclasses.replace(run, task=task, model=dataclasses.replace(run.model, config=config))


@pytest.mark.parametrize(
    ("parse_sentinels", "inputs"), [(True, "12 tokens, 1 sentinel"), (False, "23 tokens")]
)
def test_show_counts_sentinels(parse_sentinels, inputs, tmp_path, text_file, console):
    vocabulary = ByteVocabulary(parse_sentinels=parse_sentinels)
    run = run_of(tmp_path, text_file, "the <extra_id_0> sat 1\tcat\n", vocabulary)
    data.show_data(run, console, split="train", count=1)
    out = console.file.getvalue()
    assert f"inputs   the <extra_id_0> sat 1\u23f9 ({inputs})" in out
    assert "targets  cat\u23f9 (4 tokens)" in out


def test_unknown_pieces_are_shown_and_counted(tmp_path, text_file, sentencepiece_model, console):
    vocabulary = SentencePieceVocabulary(path=sentencepiece_model)
    run = run_of(tmp_path, text_file, "a \u65e5 b\t\u65e5\n", vocabulary)
    data.show_data(run, console, split="train", count=1)
    data.print_statistics(run, console, split="train", max_records=9, as_json=False)
    out = console.file.getvalue()
    assert "<unk>" in out
    assert ", 1 unknown)" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith(" task targets")]
    assert row[-2] == "50.00%"


def test_built_data_sets_are_listed_and_pruned(tmp_path, text_file, console):
    run = run_of(tmp_path, text_file, "a\tb\n", ByteVocabulary())
    folders = [pathlib.Path(run.task.source.data_dir)]
    run.task.source.records("train")
    data.list_data_sets(folders, console)
    assert "current, 1 record, " in console.file.getvalue()
    data.prune_data_sets(folders, console)
    assert "removed 0 data sets, 0 bytes" in console.file.getvalue()
    (tmp_path / "pairs.tsv").write_text("changed\tb\n")
    data.prune_data_sets(folders, console)
    assert ": files changed" in console.file.getvalue()
    assert not list((tmp_path / "tfds" / "files").iterdir())


def test_log_lines_go_to_the_current_standard_error(monkeypatch):
    log = logging.getLogger("t5lite")
    for name, value in (("propagate", True), ("handlers", []), ("level", log.level)):
        monkeypatch.setattr(log, name, value)
    quiet_libraries()
    # rich replaces it while it shows a progress bar.
    replaced = io.StringIO()
    monkeypatch.setattr(sys, "stderr", replaced)
    log.warning("building")
    assert replaced.getvalue() == "building\n"

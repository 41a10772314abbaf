"""Records of t5lite itself, damaged: attempts, metrics, results, launches, journals and notes."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import strategies as st

from t5lite.core.errors import UserError
from t5lite.core.run_directory import (
    ATTEMPTS,
    GOODPUT,
    METRICS,
    RESULT,
    append_record,
    curve,
    next_attempt,
    open_attempt,
    outcomes,
    read_attempts,
    read_metrics,
    read_result,
    utc_now,
    write_result,
)
from t5lite.data.sources.built_data_sets import built_data_sets
from t5lite.data.sources.tfds_source import TfdsSource
from t5lite.data.storage.shards import ShardWriter, Summary, read_summary
from t5lite.launching.launch import Launch
from t5lite.launching.launch_files import SPEC, read_launch, save_launch
from t5lite.launching.sweeps.space import parse_space
from t5lite.launching.sweeps.study import JOURNAL, Study
from t5lite.reporting.goodput import read_goodput
from t5lite.training.about import decode_about
from t5lite.training.good_checkpoints import (
    GOOD_FILE,
    History,
    Return,
    read_history,
    write_history,
)
from tests.fuzz.harness import attack, attack_from
from tests.fuzz.mutation import mutations

pytestmark = pytest.mark.proof

# JSON values, and NaN, infinity and halves of surrogate pairs, which Python's JSON carries. A
# recursive strategy would take ten times as long.
JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([[], {}, [1], ["a", None], [[0.5]], {"a": 1}, {"": {"a": []}}]),
)


def objects_of(sample: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """JSON lines of objects with the fields of `sample`, some with other values, some left out."""
    fields = st.fixed_dictionaries(
        {}, optional={name: st.just(value) | JSON_VALUES for name, value in sample.items()}
    )
    line = fields.map(lambda fields: json.dumps(fields).encode())
    return st.lists(line, min_size=1, max_size=2).map(b"\n".join)


def try_all(
    name: str,
    path: pathlib.Path,
    read: Callable[[], Any],
    seed: int,
    *,
    samples: Sequence[bytes] = (),
    objects: dict[str, Any] | None = None,
) -> None:
    """Writes damaged contents to a file and reads it."""

    def write_and_read(content: bytes) -> None:
        path.write_bytes(content)
        read()

    samples = [*samples, path.read_bytes()]
    for sample in samples:
        write_and_read(sample)
    attack(name, write_and_read, mutations(samples, seed), seed)
    generated = st.binary() if objects is None else st.binary() | objects_of(objects)
    attack_from(name, write_and_read, generated, seed)


def test_attempts_are_read_or_rejected(seed, memory_dir):
    for number in range(1, 3):
        start = {"began": utc_now(), "command": ["t5lite", "train"], "host": "h", "pid": 7}
        append_record(memory_dir / ATTEMPTS, attempt=number, **start)
        end = {"ended": utc_now(), "outcome": "failed", "seconds": 1.5, "error": "x"}
        append_record(memory_dir / ATTEMPTS, attempt=number, **end)

    def read() -> None:
        read_attempts(memory_dir)
        outcomes(memory_dir)
        open_attempt(memory_dir)
        next_attempt(memory_dir)

    one = json.loads((memory_dir / ATTEMPTS).read_text().splitlines()[1])
    try_all(ATTEMPTS, memory_dir / ATTEMPTS, read, seed, objects={**one, **start})


def test_metrics_are_read_or_rejected(seed, memory_dir):
    for step in (1, 2):
        numbers = {"loss": 0.5, "step_seconds": 0.25, "tokens_per_second": 100, "f1": None}
        append_record(memory_dir / METRICS, step=step, split="train", **numbers)
        append_record(memory_dir / METRICS, step=step, split="dev", loss=2.0)

    def read() -> None:
        metrics = read_metrics(memory_dir)
        curve(metrics, "loss")
        curve(metrics, "train/loss")
        write_result(memory_dir, 2)

    one = json.loads((memory_dir / METRICS).read_text().splitlines()[0])
    try_all(METRICS, memory_dir / METRICS, read, seed, objects=one)


def test_goodput_is_read_or_rejected(seed, memory_dir):
    for attempt in (1, 2):
        for step in (0, 2):
            seconds = {"other": 0.5, "step": 1.25 * step, "data": 3, "save": 0.0}
            append_record(memory_dir / GOODPUT, attempt=attempt, step=step, seconds=seconds)

    def read() -> None:
        found = read_goodput(memory_dir)
        assert found is None or isinstance(found.fraction, float)

    one = json.loads((memory_dir / GOODPUT).read_text().splitlines()[0])
    try_all(GOODPUT, memory_dir / GOODPUT, read, seed, objects=one)


def test_histories_of_checkpoints_are_read_or_rejected(seed, memory_dir):
    made = Return(
        from_step=6, to_step=3, data_seed=0, first_batch=4, last_batch=6, reason="it diverged"
    )
    write_history(memory_dir, History(good=(0, 3), returns=(made,)))
    path = memory_dir / GOOD_FILE

    def read() -> None:
        for first, last in read_history(memory_dir).skipped(0):
            assert first >= 1
            assert last >= 0

    try_all(GOOD_FILE, path, read, seed, objects=json.loads(path.read_text()))


def test_results_are_read_or_rejected(seed, memory_dir):
    append_record(memory_dir / METRICS, step=1, split="dev", loss=2.0)
    write_result(memory_dir, 1)
    try_all(
        RESULT,
        memory_dir / RESULT,
        lambda: read_result(memory_dir),
        seed,
        objects=read_result(memory_dir),
    )


def test_launches_are_read_or_rejected(seed, memory_dir):
    fields = {"folder": str(memory_dir), "command": "train", "flags": ["--gin_file=a.gin"]}
    fields |= {"engine": "slurm:gpu", "working_dir": "/", "resources": {"gpus": 8}}
    path = memory_dir / SPEC
    samples = []
    for more in (
        {"space": {"a.b": "log(1e-4, 1e-2)", "c": "[1, 2]"}, "method": "random", "trials": 3},
        {"listed": [{"a.b": 1, "c": "x"}, {"a.b": 2, "c": "y"}], "method": "list"},
    ):
        path.unlink(missing_ok=True)
        save_launch(Launch(**fields, **more))
        samples.append(path.read_bytes())

    def read() -> None:
        launch = read_launch(memory_dir)
        assert launch.num_trials >= len(launch.planned)
        assert launch.arguments(0, {})

    try_all(SPEC, path, read, seed, samples=samples, objects=json.loads(samples[0]))


def test_journals_are_read_or_rejected(seed, memory_dir, monkeypatch):
    # The disk is not what is tested.
    monkeypatch.setattr(os, "fsync", lambda file: None)
    space = parse_space({"a": "[1, 2, 3]", "b": "log(0.1, 10.0)"})
    study = Study(memory_dir, space)
    study.plan([{"a": 1, "b": 0.5}, {"a": 2, "b": 2.0}])
    study.take(0)
    study.report(0, 10, 3.0)
    study.tell(0, "complete", 1.0)
    study.take(1)
    study.tell(1, "failed")

    def read() -> None:
        found = Study(memory_dir, space)
        found.best()
        for number in range(len(found.trials())):
            if found.take(number) is None:
                found.outcome_of(number)
                found.value_of(number)

    try_all(JOURNAL, memory_dir / JOURNAL, read, seed)


def test_notes_and_summaries_of_shards_are_read_or_rejected(seed, memory_dir):
    writer = ShardWriter(memory_dir / "shard", max_errors=1, compressed=True)
    writer.write(b"record")
    writer.leave_out_bad("a.txt:1: not UTF-8")
    assert isinstance(writer.finish(), Summary)
    path = memory_dir / "shard.note"
    one = json.loads(path.read_text())
    try_all("shard notes", path, lambda: read_summary(path), seed, objects=one)


def test_metadata_of_tfds_is_read_or_rejected(seed, data_dir, memory_dir):
    """`features.json` is read by no source: those of TFDS and of files know their features."""
    TfdsSource(name="python_docs", data_dir=data_dir).records("train")
    shutil.copytree(f"{data_dir}/python_docs", memory_dir / "python_docs")
    (path,) = memory_dir.glob("python_docs/*/*/dataset_info.json")

    def read() -> None:
        records = TfdsSource(name="python_docs", data_dir=str(memory_dir)).records("train[:50%]")
        assert len(records) > 0

    try_all("dataset_info.json", path, read, seed)


def test_sources_of_data_sets_are_read_or_rejected(seed, memory_dir):
    folder = memory_dir / "files" / "a" / "1.0.0"
    folder.mkdir(parents=True)
    summary = {"records": 1, "bytes": 1, "empty": 0, "bad": 0, "errors": [], "digest": ""}
    (folder / "summary.json").write_text(json.dumps({**summary, "file_bytes": 1}))
    path = folder / "source.json"
    source = {"version": 2, "split": "train", "files": [[str(memory_dir / "no.txt"), 3, "1.5"]]}
    path.write_text(json.dumps(source))
    try_all("source.json", path, lambda: list(built_data_sets(memory_dir)), seed, objects=source)


def test_descriptions_of_checkpoints_are_read_or_rejected(seed):
    cursor = {"example": 3, "positions": [[0, 1, 2]], "taken": [4]}
    data = {"about": {"data_seed": 0}, "batches": 2, "skip_batches": [[1, 2]], "rows": [cursor]}
    model = {"architecture": "EncoderDecoder", "config": {"vocab_size": 8, "adapters": []}}
    about = {"seed": 0, "model": model, "vocabulary": {"kind": "ByteVocabulary"}, "data": data}
    about |= {"vocabulary_fingerprint": "x", "rank": 0.5, "trainable": ["a"]}

    def read(text: bytes) -> None:
        try:
            decode_about(text)
        except ValueError as error:
            # As where checkpoints are read.
            raise UserError(f"damaged: {error}") from error

    sample = json.dumps(about).encode()
    read(sample)
    attack("about", read, mutations([sample], seed), seed)
    attack_from("about", read, objects_of(about), seed)

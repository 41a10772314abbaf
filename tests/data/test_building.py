import json
import multiprocessing
import os
import signal
import time

import pytest

from t5lite.core.errors import UserError
from t5lite.data.sources.file_source import FileSource
from t5lite.data.storage.building import BuildOptions, Recipe, build_shards
from t5lite.data.storage.shards import summaries_of
from tests.proofs import proof

NUM_PARTS = 6


def write_numbers(part, writer):
    """Writes the numbers of a part, slowly or with a failure if requested."""
    start, slow, fail = part
    for number in range(start, start + 10):
        writer.write(str(number).encode())
    if fail:
        raise OSError(28, "No space left on device")
    time.sleep(slow)


def _parts(slow=0.0, fail=None):
    return {
        f"numbers.array_record-{n:05d}-of-{NUM_PARTS:05d}": (n * 10, slow, n == fail)
        for n in range(NUM_PARTS)
    }


def _build(folder, options=BuildOptions(workers=1), **choices):  # noqa: B008
    recipe = Recipe(name="numbers", write_part=write_numbers)
    return build_shards(folder, lambda: _parts(**choices), recipe, options)


@pytest.mark.proof
def test_the_result_is_the_same_for_any_number_of_processes(tmp_path):
    seen = []
    one = _build(tmp_path / "one", BuildOptions(1, lambda *counts: seen.append(counts)))
    two = _build(tmp_path / "two", BuildOptions(2))
    assert one == two
    assert one.records == 60
    assert seen == [(n + 1, NUM_PARTS, 10 * (n + 1)) for n in range(NUM_PARTS)]


def test_an_existing_folder_is_not_built_again(tmp_path):
    first = _build(tmp_path / "a")
    assert _build(tmp_path / "a", fail=0) == first


def test_a_failed_build_resumes(tmp_path):
    with pytest.raises(UserError, match="cannot be built: .*No space left"):
        _build(tmp_path / "a", fail=3)
    assert not (tmp_path / "a").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a.unfinished").glob("*.note")}
    assert len(kept) == 3
    summary = _build(tmp_path / "a")
    assert summary == _build(tmp_path / "b")
    again = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a").glob("*.note")}
    assert {name: again[name] for name in kept} == kept
    assert len(again) == NUM_PARTS


@pytest.mark.parametrize("workers", [1, proof(2)])
def test_a_killed_build_resumes(workers, tmp_path):
    context = multiprocessing.get_context("spawn")
    process = context.Process(
        target=_build, args=(tmp_path / "a", BuildOptions(workers)), kwargs={"slow": 0.5}
    )
    process.start()
    unfinished = tmp_path / "a.unfinished"
    while len(list(unfinished.glob("*.note"))) < 2:
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "a").exists()
    # Immediately, while children of the killed process may still write.
    assert _build(tmp_path / "a", BuildOptions(workers)) == _build(tmp_path / "b")
    assert len(summaries_of(tmp_path / "a")) == NUM_PARTS
    assert not list((tmp_path / "a").glob("*.tmp"))


@pytest.mark.proof
def test_two_processes_that_build_a_folder_share_the_result(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_build, args=(tmp_path / "a",), kwargs={"slow": 0.1})
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert _build(tmp_path / "a") == _build(tmp_path / "b")


@pytest.mark.proof
def test_bad_rows_of_several_processes_are_counted_together(tmp_path, monkeypatch):
    # Processes never import modules of the working directory instead of standard ones.
    monkeypatch.chdir(tmp_path)
    for name in ("pickle", "queue", "random", "selectors", "socket"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    rows = [json.dumps({"text": f"row {n}"}) if n % 50 else "broken" for n in range(400)]
    for part in range(4):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows[part * 100 : part * 100 + 100]))

    def source(max_errors):
        return FileSource(
            files={"train": "*.jsonl"},
            folder=str(tmp_path),
            max_errors=max_errors,
            data_dir=str(tmp_path / "tfds"),
        )

    with pytest.raises(UserError, match=r"more rows .* FileSource.max_errors \(7\)"):
        source(7).records("train", BuildOptions(2))
    assert len(source(8).records("train", BuildOptions(2))) == 392

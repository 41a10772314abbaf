"""Data sets of files: one per split, listed and removed."""

import json
import os
import pathlib
import shutil

import pytest

from t5lite.core.errors import UserError
from t5lite.data.sources.built_data_sets import (
    CHANGED,
    CURRENT,
    EARLIER,
    MISSING,
    UNFINISHED,
    built_data_sets,
    prune,
)
from t5lite.data.sources.file_source import FileSource
from t5lite.data.storage import building
from t5lite.data.storage.building import BuildOptions, build_lock

ROWS = [{"en": f"größer {n}", "refs": [f"ü{n}", str(n)], "o": {"a": n}} for n in range(20)]


@pytest.fixture
def make(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, ROWS[:7])))

    def source(files=None, fields=("en", "refs", "o")):
        files = files or {"train": "a.jsonl", "test": ["b.jsonl", "a.jsonl"]}
        return FileSource(
            files=files, fields=fields, folder=str(tmp_path), data_dir=str(tmp_path / "tfds")
        )

    return source


def found(tmp_path):
    return list(built_data_sets(tmp_path / "tfds"))


def test_the_order_of_splits_does_not_matter_and_a_new_split_builds_only_itself(make, tmp_path):
    make({"train": "a.jsonl"}).records("train")
    assert len(found(tmp_path)) == 1
    for files in ({"train": "a.jsonl", "test": "b.jsonl"}, {"test": "b.jsonl", "train": "a.jsonl"}):
        for split in ("train", "test"):
            make(files).records(split)
        assert sorted(each.split for each in found(tmp_path)) == ["test", "train"]


# Computed with version 0.1, which built all splits into one data set and wrote JSON in ASCII: its
# runs resume.
@pytest.mark.parametrize(
    ("split", "fingerprint", "last"),
    [
        ("train", "20 records, 8c596fa9ad0feea0", 19),
        ("train[:5]+train[10:]", "15 records, ad71f13bce6f9a08", 19),
        ("train+test", "47 records, 269153a0e534c67d", 19),
        ("all", "47 records, 269153a0e534c67d", 19),
        ("test[5:]+train[:3]", "25 records, 0f4c9fc0f431513d", 2),
    ],
)
def test_fingerprints_are_those_of_version_0_1(split, fingerprint, last, make):
    records = make().records(split, BuildOptions(workers=1))
    assert records.fingerprint == fingerprint
    assert records[len(records) - 1]["en"] == f"größer {last}"


def test_an_unknown_split_is_rejected(make):
    for split in ("tain", "train+tain[:3]"):
        with pytest.raises(UserError, match="FileSource.files has no split 'tain'; did you mean"):
            make().records(split)


def test_data_sets_are_listed_with_their_state_and_pruned(make, tmp_path):
    source = make({"train": "a.jsonl", "test": "b.jsonl"})
    for split in ("train", "test"):
        source.records(split)
    (tmp_path / "c.jsonl").write_text('{"en": "x", "refs": [], "o": {}}')
    make({"gone": "c.jsonl"}).records("gone")
    (tmp_path / "c.jsonl").unlink()
    (tmp_path / "b.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "tfds" / "files" / "aborted" / "1.0.0.unfinished").mkdir(parents=True)
    states = {each.split: each.state for each in found(tmp_path)}
    assert states == {"train": CURRENT, "test": CHANGED, "gone": MISSING, "": UNFINISHED}
    (train,) = [each for each in found(tmp_path) if each.split == "train"]
    assert train.records == 20
    assert train.files == (str(tmp_path / "a.jsonl"),)
    pathlib.Path(train.path, "1.0.0", "source.json").unlink()
    assert EARLIER in [each.state for each in found(tmp_path)]
    for each in found(tmp_path):
        prune(each)
    assert not found(tmp_path)
    assert len(make({"test": "b.jsonl"}).records("test")) == 1


def test_a_data_set_that_is_being_built_is_not_pruned(make, tmp_path):
    make({"train": "a.jsonl"}).records("train")
    (folder,) = (tmp_path / "tfds" / "files").iterdir()
    with build_lock(folder / "1.0.0"):
        assert [each.state for each in found(tmp_path)] == ["building"]


@pytest.fixture
def unfinished(tmp_path):
    folder = tmp_path / "tfds" / "files" / "0123456789abcdef"
    (folder / "1.0.0.unfinished").mkdir(parents=True)
    (folder / "1.0.0.lock").touch()
    return folder


def test_a_data_set_that_is_built_after_it_was_listed_is_not_pruned(unfinished, tmp_path):
    (listed,) = found(tmp_path)
    with build_lock(unfinished / "1.0.0"):
        assert not prune(listed)
    assert unfinished.exists()
    assert prune(listed)
    assert not prune(listed)


def test_a_builder_that_waits_while_the_data_set_is_pruned_locks_the_new_folder(
    unfinished, tmp_path, monkeypatch
):
    (listed,) = found(tmp_path)

    def pruned_meanwhile(file):
        shutil.rmtree(listed.path)
        monkeypatch.undo()

    monkeypatch.setattr(building, "try_lock", lambda file: False)
    monkeypatch.setattr(building, "wait_for_lock", pruned_meanwhile)
    with build_lock(unfinished / "1.0.0"):
        assert [each.state for each in found(tmp_path)] == ["building"]


def test_files_of_a_build_may_disappear_while_it_is_listed(unfinished, tmp_path, monkeypatch):
    shard = unfinished / "1.0.0.unfinished" / "a.tmp"
    shard.write_bytes(bytes(100))
    (unfinished / "1.0.0.unfinished" / "b").write_bytes(bytes(10))
    stat = os.stat

    def removed_first(path, **options):
        if str(path) == str(shard):
            shard.unlink()
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", removed_first)
    assert [each.file_bytes for each in found(tmp_path)] == [10]


@pytest.mark.proof
def test_a_file_that_changes_while_it_is_read_is_an_error(make, tmp_path):
    source = make({"train": ["a.jsonl", "b.jsonl"]})

    def append(done, count, records):
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write("\n" + json.dumps(ROWS[0]))

    with pytest.raises(UserError, match="a.jsonl changed while it was read; run the command again"):
        source.records("train", BuildOptions(workers=1, on_shard=append))
    assert len(make({"train": ["a.jsonl", "b.jsonl"]}).records("train")) == 29

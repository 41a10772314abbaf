import bz2
import gzip
import json
import lzma
import multiprocessing
import os
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from t5lite.core.errors import UserError
from t5lite.data.sources import files
from t5lite.data.sources.file_source import FileSource
from t5lite.data.sources.files import Part
from t5lite.data.sources.formats import parts_of, read_part, split_text
from t5lite.data.sources.tfds_source import TfdsSource
from t5lite.data.storage.array_records import ArrayRecords
from t5lite.data.storage.building import BuildOptions
from tests import small
from tests.proofs import proof

ROWS = [{"en": f"größer {n}", "de": f"日本 {n}" * (n % 5), "n": n} for n in range(500)]
PAIRS = [(row["en"], row["de"]) for row in ROWS]


def _all(records):
    return [records[i] for i in range(len(records))]


def _source(tmp_path, name, **choices):
    return FileSource(
        files={"train": name}, folder=str(tmp_path), data_dir=str(tmp_path / "tfds"), **choices
    )


def _write(path, kind):
    if kind == "parquet":
        table = pyarrow.Table.from_pylist(ROWS)
        pyarrow.parquet.write_table(table, path, row_group_size=99)
        return
    lines = {
        "jsonl": [json.dumps(row) for row in ROWS],
        "tsv": ["\t".join(pair) for pair in PAIRS],
    }[kind]
    text = "".join(line + "\n" for line in lines).encode()
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path.write_bytes(pack.get(path.suffix, bytes)(text))


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.tsv", "a.parquet", "a.jsonl.gz", "a.tsv.bz2", "a.jsonl.xz"]
)
def test_every_format_gives_the_fields_in_order(name, tmp_path):
    _write(tmp_path / name, name.split(".")[1])
    options = BuildOptions(workers=1)
    records = _source(tmp_path, name, fields=("en", "de")).records("train", options)
    assert records.fields == ("de", "en")
    assert [(r["en"], r["de"]) for r in _all(records)] == PAIRS


def test_files_of_any_file_system_are_read(tmp_path):
    import fsspec

    with fsspec.open("memory://corpus/a.txt", "w") as file:
        file.write("one\ntwo\n")
    records = _source(tmp_path, "memory://corpus/*.txt").records("train")
    assert [r["text"] for r in _all(records)] == ["one", "two"]


@pytest.mark.parametrize("part_bytes", [1, 7, 100, 5000])
@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_parts_of_a_file_together_are_its_lines(part_bytes, ending, tmp_path, monkeypatch, rng):
    lines = ["x" * n for n in rng.integers(0, 30, 50)] + ["last"]
    (tmp_path / "a.txt").write_bytes((ending or "\n").join(lines).encode() + ending.encode())
    monkeypatch.setattr(files, "PART_BYTES", part_bytes)
    parts = parts_of(str(tmp_path / "a.txt"), "lines")
    made = [r for part in parts for r in read_part(part, ("text",), max_bytes=1000)]
    assert [r and r["text"] for r in made] == [line or None for line in lines]


@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.jsonl"])
def test_only_a_line_feed_ends_a_line(name, tmp_path):
    # str.splitlines would split at each of these.
    text = "a\u2028b\u2029c\x85d\x1ce\rf\x00g\x0bh\x0ci"
    line = json.dumps({"text": text}, ensure_ascii=False) if name == "a.jsonl" else text
    (tmp_path / name).write_bytes(f"{line}\r\n{line}\n".encode())
    assert [r["text"] for r in _all(_source(tmp_path, name).records("train"))] == [text, text]


def test_fields_of_other_types_become_json(tmp_path):
    row = {"text": 5, "flag": True, "list": ["a", 1.5]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    fields = ("text", "flag", "list")
    record = _source(tmp_path, "a.jsonl", fields=fields).records("train")[0]
    assert record == {"text": "5", "flag": "true", "list": '["a", 1.5]'}


BAD_JSON = (
    b'{"text": "a"}\n{"text": "b"\n[1]\n{"txt": "c"}\n{"text": null}\n\xff\n\n{"text": " "}\n'
)
BAD_LINES = [
    ("a.jsonl:2", "not JSON"),
    ("a.jsonl:3", "must be a JSON object, got list"),
    ("a.jsonl:4", "no field 'text'; it has txt"),
    ("a.jsonl:5", "field 'text' is null"),
    ("a.jsonl:6", "not UTF-8 at byte 0"),
]


@pytest.mark.parametrize("format", ["lines", "document", "jsonl", "tsv"])
def test_a_byte_order_mark_is_not_text(format, tmp_path):
    text = '{"text": "a"}' if format == "jsonl" else "a"
    (tmp_path / "a").write_text(text, encoding="utf-8-sig")
    part = Part(str(tmp_path / "a"), format, 0, None)
    assert list(read_part(part, ("text",), max_bytes=99)) == [{"text": "a"}]


def test_the_names_of_columns_are_no_record(tmp_path):
    (tmp_path / "a.tsv").write_text("en\tde\ndog\tHund\nen\tde\n")
    records = _source(tmp_path, "a.tsv", fields=("en", "de")).records("train")
    assert _all(records) == [{"de": "Hund", "en": "dog"}, {"de": "de", "en": "en"}]


def test_missing_and_repeated_parquet_columns_are_rejected(tmp_path):
    column = pyarrow.array(["x"])
    table = pyarrow.Table.from_arrays([column] * 3, names=["content", "twice", "twice"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name, got in (("text", 0), ("twice", 2)):
        rule = f"must have one column '{name}' .*, got {got}; it has content, twice, twice"
        with pytest.raises(UserError, match=rule):
            _source(tmp_path, "a.parquet", fields=(name,)).records("train")


def test_archives_are_rejected(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="a.zip is an archive of files; unpack it"):
        _source(tmp_path, "a.zip", format="lines").records("train")


@pytest.mark.parametrize("start", [0, 5, 14, 30])
def test_bad_rows_are_reported_with_file_and_line(start, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(BAD_JSON)
    part = Part(str(tmp_path / "a.jsonl"), "jsonl", start, len(BAD_JSON))
    bad = [str(r) for r in read_part(part, ("text",), max_bytes=99) if isinstance(r, files.Bad)]
    first = BAD_JSON[:start].count(b"\n") + (start > 0 and BAD_JSON[start - 1 : start] != b"\n")
    wanted = [line for line in BAD_LINES if int(line[0].split(":")[1]) > first]
    assert len(bad) == len(wanted)
    for text, (location, reason) in zip(bad, wanted, strict=True):
        assert text.startswith(str(tmp_path / location))
        assert reason in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", BAD_JSON, r"max_errors \(0\) allows: .*a.jsonl:2: not JSON"),
        ("a.tsv", b"a\tb\tc\n", r"a.tsv:1: must have the 1 columns of FileSource.fields, got 3"),
        ("a.txt", b"fine\nbroken \xc3\n", r"a.txt:2: not UTF-8 at byte 7 of the line"),
        ("a.jsonl", b'{"text": "\\ud800"}', "half of a surrogate pair"),
        ("a.txt", b"\n \n", "but it has no record; 0 records, .* left out 2 empty rows"),
        ("a.parquet", b"PAR1 rubbish", "a.parquet must be Parquet"),
        ("a.tsv.gz", gzip.compress(b"a\n" * 999, mtime=0)[:30], "a.tsv.gz cannot be read: "),
        ("a.jsonl.gz", b"no gzip at all", "a.jsonl.gz cannot be read: Not a gzipped file"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 999, mtime=0)[:40],
            "a.jsonl.gz cannot be read",
        ),
        ("a.jsonl.zip", b"PK", "a.jsonl.zip is an archive of files; unpack it"),
        ("a.tar.gz", b"", "a.tar.gz is an archive of files; unpack it"),
        ("a.tgz", b"", "a.tgz is an archive of files; unpack it"),
        ("a.xyz", b"text", r"the format of .*a.xyz' \(FileSource.format\) is unknown"),
    ],
)
def test_unreadable_files_are_reported_on_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        _source(tmp_path, name).records("train")
    assert len(str(raised.value).splitlines()) == 1


def test_bad_rows_up_to_the_limit_are_skipped_and_counted(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_bytes(BAD_JSON)
    with pytest.raises(UserError, match="more rows cannot be read"):
        _source(tmp_path, "a.jsonl", max_errors=4).records("train")
    with caplog.at_level("INFO", logger="t5lite"):
        records = _source(tmp_path, "a.jsonl", max_errors=5).records("train")
    assert _all(records) == [{"text": "a"}]
    assert "left out 2 empty rows" in caplog.text
    assert "left out 5 rows that cannot be read" in caplog.text
    assert "a.jsonl:2: not JSON" in caplog.text


@pytest.mark.parametrize("megabytes", [2, proof(50)])
def test_pieces_of_a_large_document_concatenate_to_it(megabytes, tmp_path):
    text = "größer und größer, 日本\n" * (megabytes * 1_000_000 // 30)
    (tmp_path / "a.txt").write_text(text)
    records = _source(tmp_path, "a.txt", format="document").records("train")
    assert "".join(r["text"] for r in _all(records)) == text
    assert max(len(r["text"].encode()) for r in _all(records)) <= 65536


def test_a_long_line_is_split_between_characters():
    pieces = list(split_text("日本語" * 10, 8))
    assert max(len(piece.encode()) for piece in pieces) <= 8
    assert "".join(pieces) == "日本語" * 10


def test_the_fingerprint_changes_only_with_the_text(tmp_path):
    path = tmp_path / "a.txt"

    def fingerprint():
        return _source(tmp_path, "a.txt").records("train").fingerprint

    path.write_text("one\n")
    first = fingerprint()
    path.write_text("one\n")
    assert fingerprint() == first
    path.write_text("onf\n")
    assert fingerprint() != first


def test_records_are_read_by_number_after_pickling(tmp_path):
    _write(tmp_path / "a.jsonl", "jsonl")
    records = _source(tmp_path, "a.jsonl", fields=("n",)).records("train[10%:20%]")
    for of in (records, pickle.loads(pickle.dumps(records))):
        assert [r["n"] for r in _all(of)] == [str(n) for n in range(50, 100)]
    with pytest.raises(IndexError):
        records[50]
    assert len(ArrayRecords([])) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: TfdsSource(name="python_doc", data_dir=d), "did you mean 'python_docs'"),
        (lambda d: FileSource(files={"train": "/no/such.txt"}, data_dir=d), "no file matches"),
        (lambda d: FileSource(files={"train": "bad://x.txt"}), "cannot read files 'bad://x.txt'"),
        (lambda d: FileSource(files={}), "must name a split, as in {'train': 'a.txt'}"),
        (lambda d: FileSource(files={"train": 5}), r"files\['train'\] must be a path or a list"),
        (lambda d: FileSource(files={"a/b": "x"}), "must name splits such as 'train'.*got 'a/b'"),
        (lambda d: FileSource(files={"all": "x"}), "must name splits .* not 'all'"),
        (lambda d: FileSource(files={"train": "tests"}), "it is a folder, name its files as in"),
        (lambda d: FileSource(files={"a": "x"}, format="word"), "format is unknown: got 'word'"),
        (lambda d: FileSource(files={"train": ["setup.cfg", "*.cfg"]}), "setup.cfg more than once"),
        (lambda d: FileSource(files={"train": "setup.cfg"}, data_dir="gs://a"), "a local folder"),
        (lambda d: TfdsSource(name="python_docs", data_dir="gs://a/b"), "must be a local folder"),
        (lambda d: FileSource(files={"a": "x"}, max_bytes=3), "max_bytes must be at least 4"),
        (lambda d: FileSource(files={"a": "x"}, max_errors=-1), "max_errors must be at least 0"),
        (lambda d: FileSource(files={"a": "x"}, fields=()), "fields must be names, each once"),
        (
            lambda d: FileSource(files={"train": "README.md"}, fields=("a", "b"), format="lines"),
            "README.md is read as 'lines' and has one field",
        ),
    ],
)
def test_wrong_sources_are_rejected(make, message, data_dir):
    with pytest.raises(UserError, match=message):
        make(data_dir).records("train")


def test_slices_of_a_split_have_different_fingerprints(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{n}\n" for n in range(100)))
    source = _source(tmp_path, "a.txt")
    splits = ("train[:50]", "train[50:]", "train", "train[:50]+train[60:]", "train[:50%]")
    prints = [source.records(split).fingerprint for split in splits]
    assert len(set(prints)) == 4
    assert prints[0] == prints[4]


def test_files_of_the_same_name_size_and_time_in_two_folders_are_distinguished(tmp_path):
    found = []
    for folder, text in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(text)
        os.utime(tmp_path / folder / "x.txt", (1, 1))
        source = FileSource(
            files={"train": "x.txt"}, folder=str(tmp_path / folder), data_dir=str(tmp_path / "t")
        )
        found.append(source.records("train")[0]["text"])
    assert found == ["one", "two"]


def test_files_without_a_time_are_distinguished_by_content(tmp_path):
    import fsspec

    found = []
    for text in ("one", "two"):
        with fsspec.open("memory://again/x.txt", "w") as file:
            file.write(text)
        found.append(_source(tmp_path, "memory://again/x.txt").records("train")[0]["text"])
    assert found == ["one", "two"]


def test_a_data_set_built_with_a_higher_limit_is_rejected_under_a_lower_one(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_bytes(BAD_JSON)
    _source(tmp_path, "a.jsonl", max_errors=5).records("train")
    with pytest.raises(UserError, match="more rows cannot be read"):
        _source(tmp_path, "a.jsonl", max_errors=4).records("train")


def test_parquet_rows_with_bad_text_are_reported(tmp_path):
    rows = pyarrow.table(
        {
            "a": pyarrow.array([b"fine", b"\xff"], pyarrow.binary()),
            "b": pyarrow.array([[b"x"], None], pyarrow.list_(pyarrow.binary())),
            "c": pyarrow.Array.from_buffers(
                pyarrow.string(), 2, pyarrow.array([b"ok", b"\xfe"], pyarrow.binary()).buffers()
            ),
        }
    )
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    part = Part(str(tmp_path / "a.parquet"), "parquet", 0, 1)

    def read(*fields):
        return [str(row) for row in read_part(part, fields, max_bytes=99)]

    row = f"{tmp_path}/a.parquet: row 1 of row group 0: "
    assert read("a") == ["{'a': 'fine'}", row + "field 'a' is not UTF-8 at byte 0"]
    assert read("c") == ["{'c': 'ok'}", row + "field 'c' is not UTF-8 at byte 0"]
    assert read("b")[0] == "{'b': '[\"x\"]'}"
    assert read("b")[1] == row + "field 'b' is null"


def _fingerprint(folder, data_dir, results):
    source = FileSource(
        files={"train": "a.jsonl"}, fields=("en", "de", "n"), folder=folder, data_dir=data_dir
    )
    results.put(source.records("train").fingerprint)


@pytest.mark.proof
@pytest.mark.parametrize("count", [2, 4])
def test_builds_of_the_same_text_have_the_same_fingerprint(count, tmp_path):
    _write(tmp_path / "a.jsonl", "jsonl")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    for number in range(count):
        arguments = (str(tmp_path), str(tmp_path / f"tfds{number}"), results)
        process = context.Process(target=_fingerprint, args=arguments)
        process.start()
        process.join()
    assert len({results.get(timeout=small.PATIENCE) for _ in range(count)}) == 1


def test_a_damaged_record_is_reported_when_it_is_read(tmp_path):
    lines = [f"{n} {'x' * 500}" for n in range(400)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    records = _source(tmp_path, "a.txt").records("train")
    (shard,) = (tmp_path / "tfds").glob("files/*/1.0.0/*-of-00001")
    with shard.open("rb+") as file:
        file.seek(shard.stat().st_size // 2)
        file.write(bytes(4096))
    with pytest.raises(UserError, match="-of-00001 is damaged: .*; delete its folder"):
        _all(records)


def test_a_missing_shard_is_not_called_damaged(tmp_path):
    with pytest.raises(UserError, match="none cannot be read: No such file"):
        ArrayRecords([(str(tmp_path / "none"), 0, 1)])[0]


@pytest.mark.parametrize("change", ["lost", "cut"])
def test_a_damaged_shard_is_named(change, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    _source(tmp_path, "a.txt").records("train")
    (shard,) = (tmp_path / "tfds").glob("files/*/1.0.0/*-of-00001")
    if change == "lost":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged; delete .*/1.0.0 to build it again"):
        _source(tmp_path, "a.txt").records("train")


def test_a_file_name_may_contain_wildcard_characters(tmp_path):
    (tmp_path / "we ird [1].txt").write_text("one\n")
    assert len(_source(tmp_path, "we ird [1].txt").records("train")) == 1

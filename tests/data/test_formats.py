"""Rules of JSON, TSV headers, Parquet columns, and limits on sizes from outside."""

import datetime
import gzip
import json
import os
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from t5lite.core.errors import UserError
from t5lite.data.sources import files, formats
from t5lite.data.sources.file_source import FileSource
from t5lite.data.sources.files import Bad, Part, find_files, open_file, read_lines
from t5lite.data.sources.formats import read_part
from t5lite.data.storage.building import BuildOptions
from t5lite.data.text.fields import JsonText


def read(path, format, fields=("inputs", "targets"), **choices):
    part = Part(str(path), format, 0, 1 if format == "parquet" else None, **choices)
    return list(read_part(part, fields, max_bytes=10**6))


def source(path, **choices):
    return FileSource(
        files={"train": str(path)},
        fields=("inputs", "targets"),
        data_dir=str(path.parent / "tfds"),
        **choices,
    )


def records(path, **choices):
    found = source(path, **choices).records("train", BuildOptions(workers=1))
    return [(found[n]["inputs"], found[n]["targets"]) for n in range(len(found))]


@pytest.mark.parametrize(
    "header",
    [
        "inputs\ttargets",
        "targets\tinputs",
        "Targets\tINPUTS",
        "id\ttargets \tinputs",
        "\ufeffinputs\ttargets",
    ],
)
def test_a_first_line_that_names_all_fields_is_a_header(header, tmp_path, caplog):
    columns = [name.strip("\ufeff ").lower() for name in header.split("\t")]
    cells = {"inputs": "say 1", "targets": "ok 1", "id": "0"}
    path = tmp_path / "a.tsv"
    path.write_text(header + "\n" + "\t".join(cells[name] for name in columns) + "\n")
    with caplog.at_level("INFO", logger="t5lite"):
        assert records(path) == [("say 1", "ok 1")]
    assert "a.tsv: the first line is a header" in caplog.text


@pytest.mark.parametrize(
    "line",
    ["targets\tinput", "inputs\tok", '"inputs"\t"targets"', "#inputs\tx", "Target\tinput_"],
)
def test_a_doubtful_header_is_rejected_with_the_line(line, tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(line + "\nsay 1\tok 1\n")
    with pytest.raises(
        UserError, match="a.tsv:1: the first line names some of the fields"
    ) as raised:
        records(path)
    assert repr(line) in str(raised.value)
    # As a record, if the user says so.
    assert records(path, header=False)[1] == ("say 1", "ok 1")


def test_a_requested_header_must_name_all_fields(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("say 1\tok 1\n")
    assert records(path) == [("say 1", "ok 1")]
    with pytest.raises(UserError, match="must name the fields inputs, targets once each, got"):
        records(path, header=True)


def test_every_part_of_a_tsv_file_uses_its_header(tmp_path, monkeypatch):
    path = tmp_path / "a.tsv"
    path.write_text("targets\tinputs\n" + "".join(f"ok {n}\tsay {n}\n" for n in range(30)))
    monkeypatch.setattr(files, "PART_BYTES", 50)
    assert records(path) == [(f"say {n}", f"ok {n}") for n in range(30)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"inputs": NaN, "targets": "a"}', "field 'inputs' holds NaN, which is not JSON"),
        ('{"inputs": [1, -Infinity], "targets": "a"}', "field 'inputs' holds -Infinity"),
        ('{"inputs": 1e999, "targets": "a"}', "field 'inputs' holds Infinity"),
        (
            '{"inputs": "a", "inputs": "b", "targets": "c"}',
            "JSON: the key 'inputs' is repeated",
        ),
        ('{"inputs": {"a": 1, "a": 2}, "targets": ""}', "not JSON: the key 'a' is repeated"),
        ('{"inputs": ' + "1" * 5000 + "}", "integers must have at most 1,000 digits, got 5,000"),
        ("[" * 10**6, "nested over 100 levels deep"),
        ('{"inputs": ' + "[" * 200 + "]" * 200 + ', "targets": ""}', "nested over 100 levels"),
        ('{"inputs": ["\\ud800"], "targets": ""}', "holds half of a surrogate pair"),
    ],
)
def test_bad_json_is_a_bad_row(line, reason, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(line + '\n{"inputs": "a", "targets": "b", "unused": NaN}\n')
    bad, good = read(path, "jsonl")
    assert str(bad).startswith(f"{path}:1: ")
    assert reason in bad.reason
    assert good == {"inputs": "a", "targets": "b"}


def test_lists_and_objects_keep_utf8_and_their_type(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"inputs": {"en": "größer"}, "targets": '["text"]'}))
    ((inputs, targets),) = records(path)
    assert inputs == '{"en": "größer"}'
    assert type(inputs) is JsonText
    assert type(targets) is str


BAD = pyarrow.Array.from_buffers(
    pyarrow.string(), 2, pyarrow.array([b"ok", b"\xfe"], pyarrow.binary()).buffers()
)


@pytest.mark.parametrize(
    ("column", "good", "reason"),
    [
        (pyarrow.DictionaryArray.from_arrays([0, 1], BAD), "ok", "not UTF-8 at byte 0"),
        (pyarrow.ListArray.from_arrays([0, 1, 2], BAD), '["ok"]', "not UTF-8 at byte 0"),
        (pyarrow.StructArray.from_arrays([BAD], ["a"]), '{"a": "ok"}', "not UTF-8 at byte 0"),
        (
            pyarrow.array(
                [[("a", b"x")], [("b", b"\xff")]], pyarrow.map_(pyarrow.string(), pyarrow.binary())
            ),
            '[["a", "x"]]',
            "not UTF-8 at byte 0",
        ),
        (pyarrow.array([0.5, float("nan")]), "0.5", "holds NaN, which is not JSON"),
        (pyarrow.array([[0.5], [float("inf")]]), "[0.5]", "holds Infinity, which is not JSON"),
    ],
    ids=["dictionary", "list", "struct", "map", "nan", "list_of_inf"],
)
def test_a_bad_parquet_value_is_a_bad_row(column, good, reason, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"x": column}), tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet", "parquet", ("x",))
    assert first == {"x": good}
    assert isinstance(second, Bad)
    assert second.location == f"{tmp_path}/a.parquet: row 1 of row group 0"
    assert f"field 'x' {'is ' if 'UTF' in reason else ''}{reason}" == second.reason


@pytest.mark.parametrize(
    ("column", "type_name"),
    [
        (pyarrow.array([1, None], pyarrow.timestamp("ns")), r"timestamp[ns]"),
        (pyarrow.array([2**62, None], pyarrow.timestamp("us")), "timestamp[us]"),
        (pyarrow.array([datetime.date(2020, 1, 1), None]), "date32[day]"),
        (
            pyarrow.array([[1], None], pyarrow.list_(pyarrow.time64("ns"))),
            "list<element: time64[ns]>",
        ),
        (pyarrow.array([1, None], pyarrow.duration("s")), "duration[s]"),
        (pyarrow.array([1, None], pyarrow.time32("s")), "time32"),
    ],
    ids=["nanoseconds", "out_of_range", "date", "list_of_times", "duration", "time"],
)
def test_parquet_times_are_bad_rows(column, type_name, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"x": column}), tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet", "parquet", ("x",))
    assert isinstance(first, Bad)
    assert first.reason.startswith("field 'x' is of type ")
    assert first.reason.endswith(", which is not text")
    assert type_name in first.reason
    assert isinstance(second, Bad)
    assert second.reason == "field 'x' is null"


def test_bad_parquet_rows_count_as_errors(tmp_path):
    table = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays([0, 1, 0], BAD)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    choices = {"files": {"train": f"{tmp_path}/a.parquet"}, "data_dir": f"{tmp_path}/tfds"}
    with pytest.raises(UserError, match="row 1 of row group 0: field 'text' is not UTF-8"):
        FileSource(**choices).records("train")
    assert len(FileSource(**choices, max_errors=1).records("train")) == 2


def test_a_long_line_is_a_bad_row_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"first\n" + b"x" * 3_000_000 + b"\nlast\n"))
    first, bad, last = read(path, "lines", ("text",))
    assert (first, last) == ({"text": "first"}, {"text": "last"})
    assert str(bad) == f"{path}:2: a line must have at most 1,000 bytes"
    with (
        open_file(str(path)) as file,
        pytest.raises(UserError, match="a.txt.gz:2: a line must have at most 1,000 bytes"),
    ):
        list(read_lines(file, str(path)))


class Endless:
    """A compressed file of a few bytes that holds a line without end."""

    length = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def seek(self, position):
        pass

    def readline(self, size):
        self.length += size
        return b"x" * size


def test_a_line_without_end_is_rejected_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    endless = Endless()
    monkeypatch.setattr(formats, "open_file", lambda path: endless)
    part = Part(str(tmp_path / "a.txt.gz"), "lines", 0, None)
    bad = next(read_part(part, ("text",), max_bytes=100))
    assert str(bad) == f"{part.path}:1: a line must have at most 1,000 bytes"
    assert endless.length == 1001


def test_a_file_name_that_is_not_utf_8_is_rejected(tmp_path):
    (pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.txt"))).write_text("x\n")
    with pytest.raises(UserError, match=r"names of files must be UTF-8, got '.*a\\udcff.txt'"):
        find_files(str(tmp_path), "*.txt")


def test_a_document_that_is_too_long_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 9)
    (tmp_path / "a.txt").write_text("ten bytes.")
    (bad,) = read(tmp_path / "a.txt", "document", ("text",))
    assert bad.reason == "a document must have at most 9 bytes; read it as lines"

"""Data files in every format, damaged: rows are read, left out as bad, or rejected by line."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import strategies as st

from t5lite.data.sources.files import Bad
from t5lite.data.sources.formats import parts_of, read_part
from t5lite.data.sources.tsv import header_of
from tests.fuzz.harness import attack, attack_from
from tests.fuzz.mutation import mutations

pytestmark = pytest.mark.proof

JSONL = b"""{"text": "a \\u00e9", "label": 1}
{"text": ["x", {"y": null}], "label": -1.5e3}
{"text": "", "label": true}
"""
TSV = "text\tlabel\nfoo\tb\u00e4r\nx\t\n".encode()


def parquet_files() -> list[bytes]:
    """Parquet files with every type that has text, and some that have none."""
    days = pyarrow.array([0, 2**31 - 1, None], pyarrow.date32())
    times = pyarrow.array([1, -(2**60), 2**62], pyarrow.timestamp("ns", tz="UTC"))
    texts = pyarrow.array([b"a", b"\xff", b"c"]).cast(pyarrow.binary())
    columns = [
        {"text": pyarrow.array(["a", "b", None]), "label": pyarrow.array([[1], [], [2, 3]])},
        {"text": pyarrow.array(["a", "b", "a"]).dictionary_encode(), "label": days},
        {"text": texts, "label": times},
        {"text": pyarrow.array([{"a": "x"}, {"a": None}, None]), "label": pyarrow.array([1, 2, 3])},
    ]
    files = []
    for each in columns:
        for compression in ("NONE", "SNAPPY"):
            sink = pyarrow.BufferOutputStream()
            pyarrow.parquet.write_table(pyarrow.table(each), sink, compression=compression)
            files.append(sink.getvalue().to_pybytes())
    return files


CASES = {
    "lines": ("a.txt", [b"one\ntwo\r\n\n\xef\xbb\xbfthree"]),
    "document": ("a.txt", [b"\xef\xbb\xbfone\ntwo\n"]),
    "jsonl": ("a.jsonl", [JSONL]),
    "tsv": ("a.tsv", [TSV]),
    "parquet": ("a.parquet", parquet_files()),
}


@pytest.fixture
def read_file(memory_dir):
    def reader(name, format):
        path = memory_dir / name
        fields = ("text",) if format in ("lines", "document") else ("text", "label")

        def read(content: bytes) -> int:
            path.write_bytes(content)
            if format == "tsv":
                header_of(str(path), fields, None)
            return sum(
                isinstance(row, Bad) or row is not None
                for part in parts_of(str(path), format)
                for row in read_part(part, fields, max_bytes=16)
            )

        return read

    return reader


@pytest.mark.parametrize("format", CASES)
def test_files_are_read_or_rejected(format, seed, read_file):
    name, samples = CASES[format]
    read = read_file(name, format)
    for sample in samples:
        assert read(sample) > 0
    attack(format, read, mutations(samples, seed), seed)
    attack_from(format, read, st.binary(), seed)


def test_compressed_files_are_read_or_rejected(seed, read_file):
    read = read_file("a.jsonl.gz", "jsonl")
    samples = [gzip.compress(JSONL), gzip.compress(JSONL * 50) + gzip.compress(TSV)]
    attack("gzip", read, mutations(samples, seed), seed)
    attack_from("gzip", read, st.binary().map(gzip.compress) | st.binary(), seed)


def test_rows_of_jsonl_are_read_or_left_out(seed, read_file):
    read = read_file("a.jsonl", "jsonl")
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    )
    rows = st.fixed_dictionaries({"text": values, "label": values})
    attack_from("rows of JSONL", read, rows.map(lambda row: json.dumps(row).encode()), seed)

import io

import pytest

from t5lite.core.errors import UserError
from t5lite.data.sources import TextSource, TfdsSource
from t5lite.data.text_files import records_of


def _all(documents):
    return [documents[i] for i in range(len(documents))]


def test_lines_are_documents_in_order(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three")
    source = TextSource(
        files={"train": "*.txt"}, folder=str(tmp_path), data_dir=str(tmp_path / "data")
    )
    assert _all(source.documents("train")) == [b"one", b"two", b"three"]


def test_pieces_of_a_file_are_the_file(tmp_path):
    text = "größer und größer\n" * 50
    (tmp_path / "a.txt").write_text(text)
    source = TextSource(
        files={"train": str(tmp_path / "a.txt")},
        record="file",
        max_bytes=64,
        data_dir=str(tmp_path / "data"),
    )
    pieces = _all(source.documents("train"))
    assert b"".join(pieces).decode() == text
    assert max(map(len, pieces)) <= 64
    assert all(piece.endswith(b"\n") for piece in pieces)


def test_a_line_that_is_too_long_is_cut_between_characters():
    pieces = list(records_of(io.BytesIO("日本語".encode() * 10), record="line", max_bytes=8))
    assert max(map(len, pieces)) <= 8
    assert "".join(piece.decode() for piece in pieces) == "日本語" * 10


def test_the_fingerprint_changes_with_the_files(tmp_path):
    path = tmp_path / "a.txt"

    def fingerprint():
        source = TextSource(files={"train": str(path)}, data_dir=str(tmp_path / "data"))
        return source.documents("train").fingerprint

    path.write_text("one\n")
    first = fingerprint()
    assert fingerprint() == first
    path.write_text("one\ntwo\n")
    assert fingerprint() != first


def test_python_docs_is_split_by_topic(data_dir):
    source = TfdsSource(name="python_docs", data_dir=data_dir)
    train, validation = (_all(source.documents(s)) for s in ("train", "validation"))
    assert len(train) + len(validation) > 70
    assert not set(train) & set(validation)
    share = sum(map(len, validation)) / sum(map(len, train + validation))
    assert 0.02 < share < 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: TfdsSource(name="python_doc", data_dir=d), "did you mean 'python_docs'"),
        (lambda d: TfdsSource(name="python_docs", text_field="txt", data_dir=d), "no field 'txt'"),
        (lambda d: TextSource(files={"train": "/no/such.txt"}, data_dir=d), "there is no file"),
        (lambda d: TextSource(files={}, record="word", data_dir=d), "must be one of"),
    ],
)
def test_what_is_not_there_is_refused(make, message, data_dir):
    with pytest.raises(UserError, match=message):
        make(data_dir).documents("train")


def test_an_unknown_split_names_those_that_are(data_dir):
    with pytest.raises(UserError, match="has no split 'test'; known: train, validation"):
        TfdsSource(name="python_docs", data_dir=data_dir).documents("test")


def test_an_empty_corpus_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    source = TextSource(files={"train": str(tmp_path / "empty.txt")}, data_dir=str(tmp_path))
    with pytest.raises(UserError, match="must hold text, but there is none"):
        source.documents("train")

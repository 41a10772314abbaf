import fcntl
import json
import pathlib

import pytest

import t5lite.inference.infer as infer_module
from t5lite.core.errors import UserError
from t5lite.inference.decoding import Decoding
from t5lite.inference.infer import Output, infer
from t5lite.inference.requests import Inference, Request, read_requests


def requests(count):
    return [Request(given={"inputs": str(n)}, inputs=str(n)) for n in range(count)]


def answer(some, first, on_done):
    return [{"prediction": f"{first + n}"} for n, _ in enumerate(some)]


def results(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def go(path, answering=answer, count=10):
    output = Output(path, {"input": "a"})
    infer(iter(requests(count)), output, answering, chunk_size=3, on_done=lambda done: None)


@pytest.mark.parametrize("cut", [0, 1, 4])
def test_what_was_cut_off_goes_on_and_nothing_is_lost_or_doubled(cut, tmp_path):
    path, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"

    def fails(some, first, on_done):
        if first >= 6:
            raise KeyboardInterrupt
        return answer(some, first, on_done)

    with pytest.raises(KeyboardInterrupt):
        go(path, fails)
    assert not path.exists()
    lines = partial.read_text().splitlines(keepends=True)
    assert len(lines) == 6
    # As if it had been killed while it wrote: whole lines, and one without its end.
    partial.write_text("".join(lines[: 6 - cut]) + '{"inputs": "hal')
    asked = []

    def counts(some, first, on_done):
        asked.append(first)
        return answer(some, first, on_done)

    go(path, counts)
    assert results(path) == [{"inputs": str(n), "prediction": str(n)} for n in range(10)]
    # Chunks begin where they did before.
    assert asked[0] == {0: 6, 1: 3, 4: 0}[cut]
    assert list(tmp_path.iterdir()) == [path]


def test_a_part_of_other_work_is_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    output = Output(path, {"input": "a", "mode": "predict"})
    output.write([{"prediction": "x"}])
    with pytest.raises(UserError, match="is being written by another process"):
        Output(path, {"input": "a", "mode": "predict"})
    output.close()
    with pytest.raises(
        UserError, match="was begun with mode predict, got score; go on with the former"
    ):
        Output(path, {"input": "a", "mode": "score"})
    assert results(tmp_path / "out.jsonl.partial") == [{"prediction": "x"}]


def test_an_output_that_is_there_is_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("precious")
    with pytest.raises(UserError, match="is there already; name another"):
        go(path)
    assert path.read_text() == "precious"


def test_what_comes_to_be_meanwhile_is_left_alone_and_so_are_the_results(tmp_path):
    path = tmp_path / "out.jsonl"

    def is_slow(some, first, on_done):
        path.write_text("precious")
        return answer(some, first, on_done)

    with pytest.raises(UserError, match="came to be while .*out.jsonl.partial was made, which is"):
        go(path, is_slow)
    assert path.read_text() == "precious"
    assert len(results(tmp_path / "out.jsonl.partial")) == 10


def test_who_comes_when_another_has_just_finished_is_told(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"

    def late(file, kind):
        monkeypatch.undo()
        go(path)
        fcntl.flock(file, kind)

    monkeypatch.setattr(infer_module.fcntl, "flock", late)
    with pytest.raises(UserError, match="is there already; name another"):
        Output(path, {"input": "a"})
    assert len(results(path)) == 10


def test_progress_is_told_of_every_part(tmp_path):
    told = []

    def by_twos(some, first, on_done):
        for count in range(2, len(some) + 1, 2):
            on_done(count)
        return answer(some, first, on_done)

    output = Output(tmp_path / "out.jsonl", {"input": "a"})
    infer(iter(requests(9)), output, by_twos, chunk_size=4, on_done=told.append)
    assert told == [2, 4, 6, 8]


def read(tmp_path, content, mode="predict", name="in.jsonl", **choices):
    path = pathlib.Path(tmp_path) / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_requests(str(path), Inference(**choices), mode))


def test_objects_keep_all_that_they_have(tmp_path):
    content = '{"inputs": "a", "id": 7, "decoding": {"max_length": 3}, "prefix": "p"}\n\n'
    request, empty = read(tmp_path, content)
    assert request.given["id"] == 7
    assert (request.inputs, request.prefix, request.decoding) == ("a", "p", {"max_length": 3})
    assert empty is None


def test_lines_of_text_are_inputs_and_so_is_an_empty_one(tmp_path):
    found = read(tmp_path, "one\r\n\nthree", name="in.txt")
    assert [request.inputs for request in found] == ["one", "", "three"]


def test_a_mark_of_the_byte_order_is_no_text(tmp_path):
    (found,) = read(tmp_path, b"\xef\xbb\xbfone", name="in.txt")
    assert found.inputs == "one"


def test_what_is_scored_may_have_fields_that_writing_would_take(tmp_path):
    content = '{"inputs": "a", "targets": "b", "prefix": 3, "decoding": "none"}'
    (found,) = read(tmp_path, content, mode="score")
    assert (found.targets, found.prefix, found.decoding) == ("b", "", {})


def test_templates_and_steps_make_the_inputs(tmp_path):
    (request,) = read(
        tmp_path,
        '{"en": " A  b"}',
        inputs="translate: {en}",
        preprocessors=["lowercase", "normalize_whitespace"],
    )
    assert request.inputs == "translate: a b"
    assert request.given == {"en": " A  b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"inputs": "a"}\n{"inputs": "\xff"}\n', "in.jsonl:2: no UTF-8 at byte 12"),
        ('{"inputs": "a"}\n{"inputs"\n', "in.jsonl:2: not JSON"),
        ('{"inputs": "a", "inputs": "b"}\n', "not JSON: the key 'inputs' is repeated"),
        ('{"inputs": "a", "x": [NaN]}\n', "in.jsonl:1: holds NaN, which is not JSON"),
        ('{"inputs": "a", "x": [1e400]}\n', "in.jsonl:1: holds Infinity, which is not JSON"),
        ('{"inputs": "a", "decoding": {"top_k": 2}}\n', "top_k needs Decoding.temperature"),
        ("[1]\n", "in.jsonl:1: must be a JSON object, got list"),
        ('{"input": "a"}\n', "in.jsonl:1: no text 'inputs'; did you mean 'input'"),
        ('{"inputs": 3}\n', "in.jsonl:1: field 'inputs' must be a text, got int"),
        ("{}\n", "in.jsonl:1: no text 'inputs'; known: none"),
        ('{"inputs": "a", "score": 1}\n', "has a field 'score' already, which would be overwr"),
        ('{"inputs": "\\ud800"}\n', "in.jsonl:1: holds half of a surrogate pair"),
        ('{"inputs": "a", "prefix": 1}\n', "prefix must be a text, got 1"),
        ('{"inputs": "a", "decoding": 1}\n', "decoding must be an object"),
        ('{"inputs": "a", "decoding": {"num_beams": 2}}\n', "no number 'num_beams' of its own"),
        ('{"inputs": "a", "decoding": {"temperature": 1}}\n', "the others are written greedily"),
        ('{"inputs": "a", "decoding": {"max_length": 0}}\n', "max_length must be at least 1"),
        ('{"inputs": "a", "decoding": {"max_length": null}}\n', "must be a whole number, got None"),
        ('{"inputs": "a", "decoding": {"max_length": 2.5}}\n', "must be a whole number, got 2.5"),
        ('{"inputs": "a", "decoding": {"top_p": [0.9]}}\n', "top_p of decoding must be a number"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)


def test_what_is_to_be_scored_needs_targets(tmp_path):
    with pytest.raises(UserError, match="no text 'targets'"):
        read(tmp_path, '{"inputs": "a"}\n', mode="score")


def test_no_more_targets_are_told_than_written():
    with pytest.raises(UserError, match="infer.num_best must be at most the 4 targets"):
        Inference(decoding=Decoding(num_beams=4), num_best=5)


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"must be objects in .jsonl, or lines in .txt, got tsv"):
        read(tmp_path, "a\tb", name="in.tsv")

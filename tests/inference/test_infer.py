import json
import pathlib

import pytest

import t5lite.inference.infer as infer_module
from t5lite.core.errors import UserError
from t5lite.core.locks import try_lock
from t5lite.inference.decoding import Decoding
from t5lite.inference.infer import ResultFile, ResultStream, infer
from t5lite.inference.requests import Inference, Request, read_requests


def requests(count):
    return [Request(given={"inputs": str(n)}, inputs=str(n)) for n in range(count)]


def answer(some, first, on_done):
    return [{"prediction": f"{first + n}"} for n, _ in enumerate(some)]


def results(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_infer(path, answering=answer, count=10):
    output = ResultFile(path, {"input": "a"})
    infer(iter(requests(count)), output, answering, chunk_size=3, on_done=lambda done: None)


@pytest.mark.parametrize("cut", [0, 1, 4])
def test_an_interrupted_file_resumes_without_loss_or_repetition(cut, tmp_path):
    path, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"

    def fails(some, first, on_done):
        if first >= 6:
            raise KeyboardInterrupt
        return answer(some, first, on_done)

    with pytest.raises(KeyboardInterrupt):
        run_infer(path, fails)
    assert not path.exists()
    lines = partial.read_text().splitlines(keepends=True)
    assert len(lines) == 6
    # As a kill during a write leaves it: whole lines and an incomplete one.
    partial.write_text("".join(lines[: 6 - cut]) + '{"inputs": "hal')
    asked = []

    def counts(some, first, on_done):
        asked.append(first)
        return answer(some, first, on_done)

    run_infer(path, counts)
    assert results(path) == [{"inputs": str(n), "prediction": str(n)} for n in range(10)]
    # Chunks start where they did before.
    assert asked[0] == {0: 6, 1: 3, 4: 0}[cut]
    assert list(tmp_path.iterdir()) == [path]


def test_a_partial_file_of_other_work_is_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    output = ResultFile(path, {"input": "a", "mode": "predict"})
    output.write([{"prediction": "x"}])
    with pytest.raises(UserError, match="is being written by another process"):
        ResultFile(path, {"input": "a", "mode": "predict"})
    output.close()
    with pytest.raises(
        UserError, match="was started with mode predict, got score; resume with the former"
    ):
        ResultFile(path, {"input": "a", "mode": "score"})
    assert results(tmp_path / "out.jsonl.partial") == [{"prediction": "x"}]


def test_an_existing_output_is_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("precious")
    with pytest.raises(UserError, match="exists; name another file"):
        run_infer(path)
    assert path.read_text() == "precious"


def test_a_file_that_appears_meanwhile_is_left_alone_and_so_are_the_results(tmp_path):
    path = tmp_path / "out.jsonl"

    def is_slow(some, first, on_done):
        path.write_text("precious")
        return answer(some, first, on_done)

    with pytest.raises(UserError, match="appeared while .*out.jsonl.partial was written, wh"):
        run_infer(path, is_slow)
    assert path.read_text() == "precious"
    assert len(results(tmp_path / "out.jsonl.partial")) == 10


def test_starting_just_after_another_process_finished_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"

    def lock_late(file):
        monkeypatch.undo()
        run_infer(path)
        return try_lock(file)

    monkeypatch.setattr(infer_module, "try_lock", lock_late)
    with pytest.raises(UserError, match="exists; name another file"):
        ResultFile(path, {"input": "a"})
    assert len(results(path)) == 10


def test_progress_is_reported_within_chunks(tmp_path):
    counts = []

    def by_twos(some, first, on_done):
        for count in range(2, len(some) + 1, 2):
            on_done(count)
        return answer(some, first, on_done)

    output = ResultFile(tmp_path / "out.jsonl", {"input": "a"})
    infer(iter(requests(9)), output, by_twos, chunk_size=4, on_done=counts.append)
    assert counts == [2, 4, 6, 8]


def read(tmp_path, content, mode="predict", name="in.jsonl", **choices):
    path = pathlib.Path(tmp_path) / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_requests(str(path), Inference(**choices), mode))


def test_objects_keep_their_fields(tmp_path):
    content = '{"inputs": "a", "id": 7, "decoding": {"max_length": 3}, "prefix": "p"}\n\n'
    request, empty = read(tmp_path, content)
    assert request.given["id"] == 7
    assert (request.inputs, request.prefix, request.decoding) == ("a", "p", {"max_length": 3})
    assert empty is None


def test_lines_of_text_are_inputs_even_if_empty(tmp_path):
    found = read(tmp_path, "one\r\n\nthree", name="in.txt")
    assert [request.inputs for request in found] == ["one", "", "three"]


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl"])
def test_only_a_line_feed_ends_a_line_of_requests(name, tmp_path):
    # str.splitlines would split at each of these.
    text = "a\u2028b\u2029c\x85d\x1ce\rf\x00g\x0bh\x0ci"
    line = json.dumps({"inputs": text}, ensure_ascii=False) if name == "in.jsonl" else text
    found = read(tmp_path, f"{line}\r\n{line}\n", name=name)
    assert [request.inputs for request in found] == [text, text]


def test_a_byte_order_mark_is_dropped(tmp_path):
    (found,) = read(tmp_path, b"\xef\xbb\xbfone", name="in.txt")
    assert found.inputs == "one"


def test_scoring_ignores_the_fields_of_prediction(tmp_path):
    content = '{"inputs": "a", "targets": "b", "prefix": 3, "decoding": "none"}'
    (found,) = read(tmp_path, content, mode="score")
    assert (found.targets, found.prefix, found.decoding) == ("b", "", {})


def test_templates_and_preprocessors_make_the_inputs(tmp_path):
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
        (b'{"inputs": "a"}\n{"inputs": "\xff"}\n', "in.jsonl:2: not UTF-8 at byte 12"),
        ('{"inputs": "a"}\n{"inputs"\n', "in.jsonl:2: not JSON"),
        ('{"inputs": "a", "inputs": "b"}\n', "not JSON: the key 'inputs' is repeated"),
        ('{"inputs": "a", "x": [NaN]}\n', "in.jsonl:1: holds NaN, which is not JSON"),
        ('{"inputs": "a", "x": [1e400]}\n', "in.jsonl:1: holds Infinity, which is not JSON"),
        ('{"inputs": "a", "decoding": {"top_k": 2}}\n', "top_k needs Decoding.temperature"),
        ("[1]\n", "in.jsonl:1: must be a JSON object, got list"),
        ('{"input": "a"}\n', "in.jsonl:1: no string field 'inputs'; did you mean 'input'"),
        ('{"inputs": 3}\n', "in.jsonl:1: field 'inputs' must be a string, got int"),
        ("{}\n", "in.jsonl:1: no string field 'inputs'; known: none"),
        ('{"inputs": "a", "score": 1}\n', "the result would overwrite its field 'score'"),
        ('{"inputs": "\\ud800"}\n', "in.jsonl:1: holds half of a surrogate pair"),
        ('{"inputs": "a", "prefix": 1}\n', "prefix must be a string, got 1"),
        ('{"inputs": "a", "decoding": 1}\n', "decoding must be an object"),
        ('{"inputs": "a", "decoding": {"num_beams": 2}}\n', "decoding cannot set 'num_beams'"),
        ('{"inputs": "a", "decoding": {"temperature": 1}}\n', "the run decodes greedily"),
        ('{"inputs": "a", "decoding": {"length_penalty": 1}}\n', "be 0.6 with one beam.*, got 1;"),
        ('{"inputs": "a", "decoding": {"diversity_penalty": 1}}\n', "1 groups and a penalty of 1"),
        ('{"inputs": "a", "decoding": {"max_length": 0}}\n', "max_length must be at least 1"),
        ('{"inputs": "a", "decoding": {"max_length": 10000000000}}\n', "must be at most 1,048,576"),
        ('{"inputs": "a", "decoding": {"max_length": null}}\n', "must be a whole number, got None"),
        ('{"inputs": "a", "decoding": {"max_length": 2.5}}\n', "must be a whole number, got 2.5"),
        ('{"inputs": "a", "decoding": {"top_p": [0.9]}}\n', "top_p of decoding must be a number"),
    ],
)
def test_invalid_objects_are_errors_with_file_and_line(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)


def test_templates_take_paths_into_objects_as_tasks_do(tmp_path):
    content = '{"translation": {"en": "größer"}, "words": ["a", "b"]}\n'
    (request,) = read(tmp_path, content, inputs="{translation.en} {words:-}")
    assert request.inputs == "größer a-b"
    with pytest.raises(UserError, match="in.jsonl:1: .*'translation' has no 'fr'; known: en"):
        list(read(tmp_path, content, inputs="{translation.fr}"))


def test_scoring_needs_targets(tmp_path):
    with pytest.raises(UserError, match="no string field 'targets'"):
        read(tmp_path, '{"inputs": "a"}\n', mode="score")


def test_num_best_is_at_most_the_number_of_targets():
    with pytest.raises(UserError, match="infer.num_best must be at most the 4 targets"):
        Inference(decoding=Decoding(num_beams=4), num_best=5)


def test_files_of_another_format_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"must be objects in .jsonl, or lines in .txt, got tsv"):
        read(tmp_path, "a\tb", name="in.tsv")


def test_bad_objects_can_be_skipped_and_are_counted(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"inputs": "a"}\n{"inputs"\n{"inputs": "refused"}\n{"inputs": "b"}\n')
    inference = Inference(bad_objects="skip")
    errors = []

    def check(request):
        if request.inputs == "refused":
            raise UserError("not this one")

    found = read_requests(str(path), inference, "predict", check=check, on_bad=errors.append)
    assert [request.inputs for request in found] == ["a", "b"]
    assert [str(error).removeprefix(str(tmp_path)) for error in errors] == [
        "/in.jsonl:2: not JSON: Expecting ':' delimiter: line 2 column 1 (char 10)",
        "/in.jsonl:3: not this one",
    ]
    with pytest.raises(UserError, match="in.jsonl:2: not JSON"):
        list(read_requests(str(path), inference, "predict"))


def test_results_can_go_to_the_standard_output(capsys):
    infer(iter(requests(3)), ResultStream(), answer, chunk_size=2, on_done=lambda done: None)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"inputs": str(n), "prediction": str(n)} for n in range(3)]


def test_results_never_hold_nan(tmp_path):
    output = ResultFile(tmp_path / "out.jsonl", {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        output.write([{"score": float("nan")}])
    output.close()

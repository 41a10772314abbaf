"""Records against their schemas: damage is named, what a crash cut short is skipped."""

import pytest

from t5lite.core.errors import UserError
from t5lite.core.records import (
    NUMBER,
    OBJECT,
    TEXT,
    TIME,
    Schema,
    integer,
    list_of,
    object_of,
    or_null,
    read_document,
    read_json_lines,
)

SCHEMA = Schema(
    required={"step": integer(0)},
    optional={"name": or_null(TEXT), "parts": list_of(NUMBER), "counts": object_of(integer(1))},
    others=None,
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "must be a JSON object, got 5"),
        ("[" * 100_000, "nested over 100 levels"),
        ('{"step": ' + "9" * 5000 + "}", "integers must have at most 1,000 digits, got 5,000"),
        ('{"name": "a"}', "must have the field 'step'"),
        ('{"step": true}', "the field 'step' must be a 64-bit integer of at least 0, got True"),
        ('{"step": 1.0}', "the field 'step' must be a 64-bit integer of at least 0, got 1.0"),
        (
            '{"step": 9223372036854775808}',
            "64-bit integer of at least 0, got 9223372036854775808",
        ),
        ('{"step": 1, "name": 2}', "the field 'name' must be a text or null, got 2"),
        ('{"step": 1, "parts": [1, "x"]}', "a list in which each item is a number, got a list"),
        ('{"step": 1, "counts": {"a": 0}}', "each value is a 64-bit integer of at least 1, got"),
        ('{"step": 1, "nmae": "a"}', "has the unknown field 'nmae'; did you mean 'name'?"),
        ('{"step": 1, "step": 2}', "the key 'step' is repeated"),
        ('{"step": 1', "Expecting ',' delimiter"),
        (b"\xff\xfe", "can't decode byte 0xff in position 0"),
    ],
)
def test_a_document_that_does_not_match_is_one_line_with_a_remedy(text, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_document(path, SCHEMA, "remove it")
    assert str(error.value).startswith(f"{path} is damaged: ")
    assert str(error.value).endswith("; remove it")
    assert message in str(error.value)
    assert str(error.value).isprintable()


def test_a_line_that_does_not_match_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_json_lines(path, SCHEMA, "delete that line") == []
    for wrong in ("7", "x", '{"step": "1"}', '{"step": 1}}', "\0"):
        path.write_text(f'{{"step": 1}}\n\n{wrong}\n{{"step": 2}}\n')
        with pytest.raises(UserError, match=rf"^{path}:3: [^\n]+; delete that line$"):
            read_json_lines(path, SCHEMA, "delete that line")


def test_a_line_that_was_cut_short_is_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    schema = Schema(required={"step": integer(0), "more": OBJECT})
    record = '{"step": 12, "more": {"text": "a\\u00e9", "rate": 0.5, "none": null}}'
    whole = {"step": 12, "more": {"text": "a\u00e9", "rate": 0.5, "none": None}}
    for end in range(1, len(record)):
        path.write_text(f"{record}\n{record[:end]}")
        assert read_json_lines(path, schema, "") == [whole]
        # The next record begins on a new line.
        path.write_text(f"{record}\n{record[:end]}\n{record}")
        assert read_json_lines(path, schema, "") == [whole, whole]
    # The end of a file after a power loss.
    path.write_bytes(record.encode() + b"\n\0\0\0")
    assert read_json_lines(path, schema, "") == [whole]


def test_times_need_a_time_zone():
    assert TIME.holds("2026-01-31T12:00:00Z")
    assert not any(map(TIME.holds, ("2026-01-31T12:00:00", "now", "", None, 1, "9" * 50)))

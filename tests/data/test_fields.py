"""Fields that are lists and objects: templates, preprocessors and storage."""

import json
import pathlib

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from t5lite.core.errors import UserError
from t5lite.data.sources.file_source import FileSource
from t5lite.data.task import Task
from t5lite.data.text.fields import JsonText, as_field, from_stored, to_stored
from t5lite.data.text.html_tags import without_tags
from t5lite.data.text.preprocessors import changed
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.templates import check_template, fill
from t5lite.data.text.vocabularies import ByteVocabulary, SentencePieceVocabulary
from t5lite.inference.requests import Inference, read_requests
from t5lite.objectives.supervised import Supervised

RECORD = {
    "text": "plain",
    "translation": as_field({"en": "größer", "de": {"formal": "Sie"}}),
    "answers": as_field({"text": ["1999", "in 1999"], "answer_start": [3, 9]}),
    "none": as_field({"text": []}),
    "words": as_field(["EU", "rejects", 7]),
    "a.b": "dotted",
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{translation.en}", "größer"),
        ("{translation.de.formal}", "Sie"),
        ("{translation.de}", '{"formal": "Sie"}'),
        ("{answers.text.0} of {answers.text: / }", "1999 of 1999 / in 1999"),
        ("{answers.answer_start.1}", "9"),
        ("{words:, }", "EU, rejects, 7"),
        ("{words}", '["EU", "rejects", 7]'),
        ("{none.text.0}", ""),
        ("{a.b}", "dotted"),
        ("{{{text}}}", "{plain}"),
    ],
)
def test_a_template_takes_paths_and_joins_lists(template, text):
    assert fill(template, RECORD) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{translation.fr}", "'translation' has no 'fr'; known: de, en"),
        ("{answers.text.2}", "'answers.text' has 2 items, counted from 0, got 2"),
        ("{text.0}", "field 'text' must be a list or an object, got the text 'plain'"),
        ("{text:, }", "field 'text' must be a list or an object"),
        ("{translation:, }", "'translation' must be a list to be joined"),
        ("{txt}", "names the field 'txt'; did you mean 'text'"),
    ],
)
def test_a_path_that_does_not_fit_is_rejected(template, message):
    with pytest.raises(UserError, match=message):
        fill(template, RECORD)


def test_a_template_is_checked_by_the_first_part_of_a_path():
    check_template("Task.inputs", "{translation.en}", ["translation"])
    with pytest.raises(UserError, match="names the field 'translated.en'"):
        check_template("Task.inputs", "{translated.en}", ["translation"])


def test_a_list_of_words_is_joined_with_the_separator_of_the_objective():
    assert fill("{words}", RECORD, list_separator=" ") == "EU rejects 7"
    assert fill("{text}", RECORD, list_separator=" ") == "plain"
    spaced = {"words": as_field(["New York"])}
    with pytest.raises(UserError, match="every item must be a word without spaces, got 'New York'"):
        fill("{words}", spaced, list_separator=" ")


@pytest.mark.parametrize("field", ["[1]", JsonText("[1]"), "\ufdd0x", "\ufdd0", "", "a\x00b"])
def test_stored_fields_keep_text_and_type(field):
    restored = from_stored(to_stored(field))
    assert restored == field
    assert type(restored) is type(field)


def test_preprocessors_change_the_texts_within_lists_and_objects():
    record = {"o": as_field({"Key": ["Ä  B", 1, None]})}
    after = changed("owner", ["lowercase", "normalize_whitespace"], record, 0)
    assert after is not None
    assert after["o"].value == {"Key": ["ä b", 1, None]}


def test_parse_json_makes_lists_of_texts_and_leaves_other_texts():
    record = {"a": '["x"]', "b": "[x", "c": "5", "d": '{"n": NaN}'}
    after = changed("owner", ["parse_json"], record, 0)
    assert after is not None
    assert [type(field) is JsonText for field in after.values()] == [True, False, False, False]
    assert dict(after) == record


def make_list(record):
    """A user's preprocessor that returns a list."""
    return {"list": [record["text"], "b"]}


def test_a_users_preprocessor_may_return_lists():
    after = changed("owner", ["tests.data.test_fields:make_list"], {"text": "a"}, 0)
    assert fill("{list:+}", after) == "a+b"


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("if a < b and c > d", "if a < b and c > d"),
        ("<b>cat</b>", " cat "),
        ("a<br/>b", "a b"),
        ("x <!-- a > b --> y <!DOCTYPE html> z", "x   y   z"),
        ("<a title='>'>link</a>", " link "),
        ("1 <- 2 <= 3 <3", "1 <- 2 <= 3 <3"),
        ("R&D &amp; &lt;b&gt; &#65;", "R&D &amp; &lt;b&gt; &#65;"),
        ("open <b", "open <b"),
        ("AT&T <i>x</i> &", "AT&T  x  &"),
    ],
)
def test_strip_html_tags_removes_tags_alone(text, stripped):
    assert without_tags(text) == stripped


STEPS = ("lowercase", "normalize_whitespace", "normalize_unicode", "strip_html_tags")
SPECIAL = SpecialTokens(added_tokens={"<sep>": 384, "<CLS  \uff21>": 385, "<a>": 386})


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("<b>The</b> <extra_id_0> sat", " The  <extra_id_0> sat"),
        ("one <sep> two<sep>", "one <sep> two<sep>"),
        ("<a><p>x</p>", "<a> x "),
        # A part of a tag goes with the tag.
        ("<i title='<sep>'>x</i><extra_id_7>", " x <extra_id_7>"),
        ("<<sep>> <other>", "<<sep>>  "),
    ],
)
def test_special_pieces_are_no_tags(text, stripped):
    kept = ByteVocabulary(special=SPECIAL).kept_texts
    for field in (text, as_field([text])):
        after = changed("owner", ["strip_html_tags"], {"a": field}, 0, kept=kept)
        assert after == {"a": stripped if field == text else as_field([stripped])}


@pytest.mark.parametrize("step", STEPS)
def test_preprocessors_leave_special_pieces_as_they_are(step):
    pieces = ["<extra_id_0>", "<sep>", "<CLS  \uff21>"]
    vocabulary = ByteVocabulary(special=SPECIAL)
    after = changed("owner", [step], {"a": "B".join(pieces)}, 0, kept=vocabulary.kept_texts)
    letter = "b" if step == "lowercase" else "B"
    assert after == {"a": letter.join(pieces)}


def test_sentinels_are_tags_where_they_are_literal_text():
    kept = ByteVocabulary(parse_sentinels=False).kept_texts
    assert changed("o", ["strip_html_tags"], {"a": "<extra_id_0>"}, 0, kept=kept) == {"a": " "}


def test_user_defined_pieces_of_a_model_are_left_as_they_are(sentencepiece_model, tmp_path):
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(pathlib.Path(sentencepiece_model).read_bytes())
    for piece in ("<SEP>", "[NLU]", "\u03a9", "\n"):
        model.pieces.add(piece=piece, score=0.0, type=model.SentencePiece.USER_DEFINED)
    path = tmp_path / "own.model"
    path.write_bytes(model.SerializeToString())
    kept = SentencePieceVocabulary(path=str(path)).kept_texts
    record = {"a": "<SEP> A \u03a9 [NLU]\n<b>"}
    after = changed("owner", STEPS, record, 0, kept=kept)
    assert after == {"a": "<SEP> a \u03c9 [NLU]  "}


def test_inference_and_tasks_leave_the_same_pieces(tmp_path):
    steps = ["strip_html_tags"]
    vocabulary = ByteVocabulary(special=SPECIAL)
    path = tmp_path / "a.jsonl"
    path.write_text('{"inputs": "<b>a <sep> <extra_id_0>", "targets": "c"}\n')
    task = Task(
        source=FileSource(files={"train": str(path)}, fields=("inputs", "targets")),
        vocabulary=vocabulary,
        objective=Supervised(inputs_length=32, targets_length=8),
        inputs="{inputs}",
        targets="{targets}",
        preprocessors=steps,
    )
    trained, _ = task.tokens("train")[0]
    (request,) = read_requests(
        str(path), Inference(preprocessors=steps), "predict", kept=vocabulary.kept_texts
    )
    assert request.inputs == " a <sep> <extra_id_0>"
    np.testing.assert_array_equal(trained, vocabulary.encode(request.inputs))


def test_json_of_a_field_keeps_utf8():
    assert as_field(["ü"]) == '["ü"]'
    assert json.loads(as_field(["ü"])) == ["ü"]

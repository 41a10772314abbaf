"""Preprocessors: functions, by name, that change or drop a record before it becomes text.

A preprocessor takes the fields of a record, as strings, and returns the changed record, or None to
drop it. Name your own as "module:function". A field that is a list or an object arrives as a
`JsonText`, a string with its JSON; a preprocessor may return lists and objects.

Those of this module leave the special pieces of the vocabulary in a text as they are: sentinels
such as `<extra_id_0>`, added tokens and user-defined symbols.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from t5lite.core.errors import UserError
from t5lite.core.json_values import decode_json, plain_value
from t5lite.core.named import named, versioned
from t5lite.data.text.fields import JsonText, Record, as_field, map_texts
from t5lite.data.text.html_tags import without_tags
from t5lite.data.text.kept_texts import changed_between

Preprocessor = Callable[[Record], Record | None]


def lowercase(record: Record) -> Record:
    """Converts all letters to lower case.

    >>> lowercase({"text": "Ab C"})
    {'text': 'ab c'}
    """
    return {name: map_texts(field, str.lower) for name, field in record.items()}


def normalize_whitespace(record: Record) -> Record:
    r"""Replaces each run of white space by a space, and strips both ends.

    >>> normalize_whitespace({"text": " a\n b "})
    {'text': 'a b'}
    """
    return {name: map_texts(field, _one_space) for name, field in record.items()}


def _one_space(text: str) -> str:
    return " ".join(text.split())


def normalize_unicode(record: Record) -> Record:
    """Converts text to Unicode's normal form NFKC; full-width letters become plain ones.

    >>> normalize_unicode({"text": "\uff21"})
    {'text': 'A'}
    """
    return {name: map_texts(field, _nfkc) for name, field in record.items()}


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def strip_html_tags(record: Record) -> Record:
    """Replaces each HTML tag by a space; a lone `<` is text, and so are special pieces.

    >>> strip_html_tags({"text": "a<br />b < c"})
    {'text': 'a b < c'}
    """
    return {name: map_texts(field, without_tags) for name, field in record.items()}


def drop_if_any_empty(record: Record) -> Record | None:
    """Drops a record with an empty field.

    >>> drop_if_any_empty({"en": "a", "de": " "}) is None
    True
    """
    return record if all(text.strip() for text in record.values()) else None


def parse_json(record: Record) -> Record:
    """Turns texts that are JSON lists or objects into lists or objects, as for TSV files.

    >>> parse_json({"answers": '["1999", "in 1999"]', "question": "[When?"})
    {'answers': '["1999", "in 1999"]', 'question': '[When?'}
    """
    return {name: _parsed(field) for name, field in record.items()}


def mark_answer(record: Record) -> Record:
    """Adds `before_answer`: the text of `context` before the first of `answers`, as in SQuAD.

    >>> answers = JsonText('{"text": ["cat"], "answer_start": [8]}')
    >>> mark_answer({"context": "cats: a cat", "answers": answers})["before_answer"]
    'cats: a '
    """
    found = getattr(record["answers"], "value", record["answers"])
    given = [found.get(n) for n in ("text", "answer_start")] if isinstance(found, dict) else [None]
    if not all(isinstance(each, list) for each in given):
        raise ValueError(
            f"answers must be an object with lists text and answer_start, got {found!r}"
        )
    texts, starts = given
    if not texts:
        return {**record, "before_answer": ""}
    start = starts[0] if starts else -1
    context = record["context"]
    if start < 0 or not context.startswith(texts[0], start):
        raise ValueError(
            f"answer_start must be where context has the answer {texts[0]!r}, got {start}, where "
            f"it has {context[max(start, 0) :][: len(texts[0])]!r}"
        )
    return {**record, "before_answer": context[:start]}


def _parsed(field: str) -> str:
    try:
        value = plain_value(decode_json(field))
    except ValueError:
        return field
    return JsonText(field) if isinstance(value, list | dict) else field


PREPROCESSORS: Mapping[str, Preprocessor] = {
    step.__name__: step
    for step in (
        lowercase,
        normalize_whitespace,
        normalize_unicode,
        strip_html_tags,
        drop_if_any_empty,
        parse_json,
        mark_answer,
    )
}

# The preprocessors that change each text by itself.
_TEXT_CHANGES: Mapping[str, Callable[[str], str]] = {
    "lowercase": str.lower,
    "normalize_whitespace": _one_space,
    "normalize_unicode": _nfkc,
    "strip_html_tags": without_tags,
}

# Change the version of a preprocessor whenever its results change: runs that use it then do not
# resume with other text.
_VERSIONS = {
    "lowercase": "64952def",
    "normalize_whitespace": "afe1d5fd",
    "normalize_unicode": "a53e5f32",
    "strip_html_tags": "3",
    "drop_if_any_empty": "411c3da3",
    "parse_json": "1",
    "mark_answer": "1",
}


def preprocessor(name: str, *, owner: str = "Task.preprocessors") -> Preprocessor:
    """Returns a preprocessor by its name in this module, or as "module:function".

    Args:
        owner: the field that names it.

    Raises:
        UserError: if there is no such function.
    """
    return named(owner, name, PREPROCESSORS)


def changed(
    owner: str,
    steps: Sequence[str],
    record: Record,
    number: int,
    *,
    kept: re.Pattern[str] | None = None,
) -> Record | None:
    """Returns the record after all preprocessors, or None if one drops it.

    Args:
        owner: the field that names the preprocessors.
        number: of the record, for errors.
        kept: matches texts that the preprocessors of this module leave as they are.

    Raises:
        UserError: if one of the user's own functions fails, or returns no record.
    """
    after: Record | None = record
    for name in steps:
        if after is None:
            break
        try:
            after = _step(name, kept)(after)
        # The user's own function may raise anything.
        except Exception as error:
            raise UserError(
                f"{owner}: {name!r} failed on record {number}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(after, dict | None):
            raise UserError(
                f"{owner}: {name!r} must return the fields of a record or None, got "
                f"{type(after).__name__}"
            )
        if after is not None:
            after = {field: as_field(value) for field, value in after.items()}
    return after


def _step(name: str, kept: re.Pattern[str] | None) -> Preprocessor:
    if kept is None or name not in _TEXT_CHANGES:
        return preprocessor(name)
    change = functools.partial(changed_between, kept, _TEXT_CHANGES[name])
    return lambda record: {field: map_texts(text, change) for field, text in record.items()}


def version(name: str) -> str:
    """Returns a name that changes with the results of the preprocessor."""
    if name in _VERSIONS:
        return f"{name}#{_VERSIONS[name]}"
    return versioned("Task.preprocessors", name, PREPROCESSORS)

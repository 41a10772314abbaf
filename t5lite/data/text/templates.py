"""Templates: the text of a record's fields, as in "translate English to German: {en}".

`{field}` is the text of a field; for a list or object, its JSON. `{translation.en}` is a member of
an object, and `{answers.text.0}` an item of a list; the items of an empty list are empty texts.
`{words: }` joins the items of a list with what follows the colon. A brace in the text is doubled.
"""

import functools
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, suggestion
from t5lite.data.text.fields import JsonText


def fields_of(owner: str, template: str) -> tuple[str, ...]:
    """Returns the fields that a template names, with their paths.

    >>> fields_of("Task.inputs", "translate {translation.en}: {{literally}} {words:, }")
    ('translation.en', 'words')

    Raises:
        UserError: if it is not a template, naming `owner`.
    """
    try:
        parts = _parsed(template)
    except ValueError as error:
        raise UserError(f"{owner} {template!r} must be a template: {error}") from error
    return tuple(path for _, path, _ in parts if path is not None)


def check_names_field(owner: str, template: str) -> None:
    """Raises a UserError unless a template names a field."""
    if not fields_of(owner, template):
        raise UserError(f"{owner} must name a field, as in {{text}}, got {template!r}")


def around_last_field(template: str) -> tuple[str, str, str]:
    """Returns a template with a field in three parts: before its last field, the field, after it.

    >>> around_last_field("{{{role}}}: {text}.")
    ('{{{role}}}: ', '{text}', '.')

    Raises:
        ValueError: if it is not a template.
    """
    texts = [""]
    last = 0
    for literal, path, separator in _parsed(template):
        texts.append(literal.replace("{", "{{").replace("}", "}}"))
        if path is not None:
            last = len(texts)
            texts.append(f"{{{path}:{separator}}}" if separator else f"{{{path}}}")
    return "".join(texts[:last]), texts[last], "".join(texts[last + 1 :])


def has_field(path: str, known: Sequence[str] | Mapping[str, Any]) -> bool:
    """Returns whether a field is known, by its whole name or by the first part of its path."""
    return path in known or path.split(".")[0] in known


def check_template(owner: str, template: str, known: Sequence[str]) -> None:
    """Raises a UserError if a template names a field that records do not have."""
    for path in fields_of(owner, template):
        if not has_field(path, known):
            raise UserError(
                f"{owner} {template!r} names the field {path!r}; {suggestion(path, known)}"
            )


def fill(template: str, record: Mapping[str, str], *, list_separator: str | None = None) -> str:
    """Returns the text of a record.

    Args:
        list_separator: joins a list that the template names without a separator, whose items must
            then be words; None to write such a list as JSON.

    Raises:
        UserError: if a field is missing, or a path or separator does not fit its value.

    >>> fill("{a} and {b}", {"a": "{b}", "b": "1"})
    '{b} and 1'
    >>> fill("{t.en}: {w:-}", {"t": JsonText('{"en": "hi"}'), "w": JsonText('["x", 2]')})
    'hi: x-2'
    """
    texts = []
    for literal, path, separator in _parsed(template):
        texts.append(literal)
        if path is not None:
            # Most fields are plain texts.
            if type(field := record.get(path)) is str and separator is None:
                texts.append(field)
                continue
            try:
                texts.append(_text(path, separator, record, list_separator))
            except ValueError as error:
                raise UserError(f"template {template!r}: {error}") from error
    return "".join(texts)


@functools.lru_cache(maxsize=256)
def _parsed(template: str) -> tuple[tuple[str, str | None, str | None], ...]:
    """Returns (text before a field, its path, its separator), None for what is absent.

    Raises:
        ValueError: for another syntax.
    """
    parts = []
    for literal, path, separator, conversion in string.Formatter().parse(template):
        if path is not None:
            names = path.split(".")
            plain = [name.replace("_", "a").replace("-", "a") for name in names]
            is_path = all(name.isalnum() for name in plain) and not names[0].isdigit()
            if conversion or not is_path or "{" in (separator or ""):
                raise ValueError(
                    f"name fields as in {{text}}, {{text.0}} or {{text:, }}, got {{{path}}}; "
                    "double a brace that is text"
                )
        parts.append((literal, path, separator or None))
    return tuple(parts)


def _text(
    path: str, separator: str | None, record: Mapping[str, str], list_separator: str | None
) -> str:
    keys: list[str] = []
    name = path
    # A column of Parquet may be named "translation.en".
    if path not in record:
        name, *keys = path.split(".")
    if name not in record:
        raise ValueError(f"names the field {name!r}; {suggestion(name, record)}")
    field = record[name]
    if not isinstance(field, JsonText):
        if keys or separator:
            raise ValueError(f"field {name!r} must be a list or an object, got the text {field!r}")
        return str(field)
    value = field.value if keys or separator or list_separator else field
    for position, key in enumerate(keys):
        value = _member(value, key, ".".join([name, *keys[:position]]))
    if isinstance(value, list) and (separator or list_separator):
        items = [_scalar(item, path) for item in value]
        if not separator:
            _check_words(items, path)
        return (separator or list_separator or "").join(items)
    if separator:
        raise ValueError(f"{path!r} must be a list to be joined, got {value!r}")
    return _scalar(value, path)


def _member(value: Any, key: str, parent: str) -> Any:
    if isinstance(value, dict):
        if key not in value:
            raise ValueError(f"{parent!r} has no {key!r}; {suggestion(key, value)}")
        return value[key]
    if isinstance(value, list) and key.isdigit():
        if not value:
            return ""
        if int(key) >= len(value):
            raise ValueError(f"{parent!r} has {len(value)} items, counted from 0, got {key}")
        return value[int(key)]
    raise ValueError(f"{parent!r} has no {key!r}: it is {json.dumps(value, ensure_ascii=False)}")


def _scalar(value: Any, path: str) -> str:
    if value is None:
        raise ValueError(f"{path!r} is null")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _check_words(items: Sequence[str], path: str) -> None:
    for item in items:
        if item.split() != [item]:
            raise ValueError(
                f"{path!r} is joined with spaces, so every item must be a word without spaces, got "
                f"{item!r}; change it with a preprocessor"
            )

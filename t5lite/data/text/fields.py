"""The fields of a record: texts, and lists and objects that are kept as JSON."""

import json
from collections.abc import Callable
from typing import Any

# A record by field name.
Record = dict[str, str]

# Stored texts that begin with this noncharacter of Unicode are JSON, or a text that begins with it.
_MARK = "\ufdd0"


class JsonText(str):
    """A list or object as JSON text, with all characters of UTF-8 as they are.

    Preprocessors and plain templates see a string; `value` is the list or object.
    """

    __slots__ = ()

    @property
    def value(self) -> Any:
        """The list or object."""
        return json.loads(self)


def as_field(value: Any) -> Any:
    """Returns a list or object as `JsonText`, and any other value unchanged.

    >>> as_field({"en": "größer"})
    '{"en": "größer"}'
    """
    if isinstance(value, list | tuple | dict):
        return JsonText(json.dumps(value, ensure_ascii=False))
    return value


def map_texts(field: str, change: Callable[[str], str]) -> str:
    """Returns the field with `change` applied to its text, or to every text of its list or object.

    >>> map_texts(JsonText('{"Key": ["A", 1]}'), str.lower)
    '{"Key": ["a", 1]}'
    """
    if not isinstance(field, JsonText):
        return change(field)

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [changed(each) for each in value]
        if isinstance(value, dict):
            return {name: changed(each) for name, each in value.items()}
        return value

    return JsonText(json.dumps(changed(field.value), ensure_ascii=False))


def to_stored(field: str) -> str:
    """Returns the text that a built data set stores for a field."""
    if isinstance(field, JsonText) or field.startswith(_MARK):
        return _MARK + str(field)
    return field


def from_stored(text: str) -> str:
    """Returns the field that `to_stored` was given.

    >>> [type(from_stored(to_stored(field))).__name__ for field in ("[1]", JsonText("[1]"))]
    ['str', 'JsonText']
    """
    if not text.startswith(_MARK):
        return text
    # JSON never begins with the mark.
    return text[1:] if text.startswith(_MARK, 1) else JsonText(text[1:])

"""Records that t5lite writes and reads again: JSON, each kind checked against one `Schema`.

The schema of a record stands beside the code that writes it. What does not match, such as bytes of
another program, is an error with file, line and remedy.
"""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from t5lite.core.errors import UserError, cut, suggestion
from t5lite.core.json_values import decode_json

# Integers of records fit into 64 bits, and other numbers into a float.
MAX_INTEGER = 2**63 - 1
_MAX_NUMBER = 10**300


@dataclasses.dataclass(frozen=True)
class Kind:
    """The values that a field may have.

    Args:
        rule: completes "the field must be ...".
        holds: whether a JSON value is one of them.
    """

    rule: str
    holds: Callable[[Any], bool]


def or_null(kind: Kind) -> Kind:
    """Returns a kind that includes null."""
    return Kind(f"{kind.rule} or null", lambda value: value is None or kind.holds(value))


def list_of(kind: Kind) -> Kind:
    """Returns the kind of lists of such values."""
    return Kind(
        f"a list in which each item is {kind.rule}",
        lambda value: isinstance(value, list) and all(map(kind.holds, value)),
    )


def object_of(kind: Kind) -> Kind:
    """Returns the kind of objects with such values."""
    return Kind(
        f"an object in which each value is {kind.rule}",
        lambda value: isinstance(value, dict) and all(map(kind.holds, value.values())),
    )


def integer(least: int) -> Kind:
    """Returns the kind of integers from `least` on that fit into 64 bits."""
    return Kind(
        f"a 64-bit integer of at least {least}",
        lambda value: type(value) is int and least <= value <= MAX_INTEGER,
    )


ANYTHING = Kind("any value", lambda value: True)
TEXT = Kind("a text", lambda value: isinstance(value, str))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = object_of(ANYTHING)
# Also NaN and infinity, which earlier releases wrote.
NUMBER = Kind(
    "a number",
    lambda value: type(value) is float or (type(value) is int and abs(value) < _MAX_NUMBER),
)


def _is_time(value: Any) -> bool:
    try:
        return datetime.datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


TIME = Kind("a time such as 2026-01-31T12:00:00Z", _is_time)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """The fields of a JSON object.

    Args:
        required: fields that it must have.
        optional: fields that it may have.
        others: the kind of all other fields; None if there may be none.
    """

    required: Mapping[str, Kind] = dataclasses.field(default_factory=dict)
    optional: Mapping[str, Kind] = dataclasses.field(default_factory=dict)
    others: Kind | None = ANYTHING

    @property
    def kind(self) -> Kind:
        """The kind of objects that match, for a field of another schema."""
        names = ", ".join([*self.required, *self.optional])
        return Kind(f"an object with the right fields ({names})", self.matches)

    def matches(self, value: Any) -> bool:
        """Whether `check` accepts a value."""
        try:
            self.check(value)
        except ValueError:
            return False
        return True

    def check(self, value: Any) -> dict[str, Any]:
        """Returns `value`.

        Raises:
            ValueError: saying what is wrong with it.
        """
        if not isinstance(value, dict):
            raise ValueError(f"must be a JSON object, got {_shown(value)}")
        for name in self.required:
            if name not in value:
                raise ValueError(f"must have the field {name!r}")
        for name, each in value.items():
            kind = self.required.get(name) or self.optional.get(name) or self.others
            if kind is None:
                known = suggestion(name, [*self.required, *self.optional])
                raise ValueError(f"has the unknown field {cut(name)!r}; {known}")
            if not kind.holds(each):
                raise ValueError(f"the field {cut(name)!r} must be {kind.rule}, got {_shown(each)}")
        return value


def read_document(path: pathlib.Path, schema: Schema, remedy: str) -> dict[str, Any]:
    """Returns the object of a JSON file.

    Args:
        remedy: what to do about a damaged file.

    Raises:
        FileNotFoundError: if there is none.
        UserError: if it does not match the schema.
    """
    try:
        return decode_record(path.read_bytes(), schema)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; {remedy}") from error


def read_json_lines(path: pathlib.Path, schema: Schema, remedy: str) -> list[dict[str, Any]]:
    """Returns the objects of a JSONL file, without lines that a crash cut short; [] if missing.

    Raises:
        UserError: for a line that does not match the schema.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                records.append(decode_record(line, schema))
        except ValueError as error:
            if not _is_cut_short(line, error, is_last=number == len(lines)):
                raise UserError(f"{path}:{number}: {error}; {remedy}") from error
    return records


def decode_record(text: bytes, schema: Schema) -> dict[str, Any]:
    """Returns the object of a JSON text.

    Raises:
        ValueError: saying what is wrong with it.
    """
    return schema.check(decode_json(text.decode()))


def _is_cut_short(line: bytes, error: ValueError, *, is_last: bool) -> bool:
    """Whether a line that cannot be read is the beginning of a record.

    The last line has no line end: it is being written, or a crash cut it short. After a crash the
    next record begins on a new line.
    """
    if isinstance(error, json.JSONDecodeError):
        at_end = error.pos >= len(line)
        return is_last or (line.startswith(b"{") and (at_end or not line.endswith(b"}")))
    return is_last and isinstance(error, UnicodeDecodeError)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return cut(repr(value))

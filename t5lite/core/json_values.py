"""Strict JSON, by one rule for training data, Parquet columns and the requests of `infer`.

A key may appear once in an object. Numbers that are used must be finite: NaN and Infinity are not
JSON. Nesting and integers are limited, so that no input exhausts memory or the stack.
"""

import json
import math
from typing import Any

# Levels of lists and objects.
MAX_NESTING = 100

# Digits of an integer; Python's own limit is 4,300.
MAX_DIGITS = 1000


def decode_json(text: str) -> Any:
    """Returns the value of a JSON text.

    NaN and infinite numbers pass; `plain_value` rejects them in the fields that are used.

    Raises:
        ValueError: if it is not JSON, repeats a key, or exceeds a limit.

    >>> decode_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    ValueError: the key 'a' is repeated
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error


def plain_value(value: Any, depth: int = 0) -> Any:
    """Returns the value with all bytes decoded, ready for `json.dumps`.

    Raises:
        ValueError: completes "the field ...": for text that is not UTF-8, a number that is not
            finite, too many levels, or a type that JSON does not have.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half of a surrogate pair, which is not text") from error
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"holds {json.dumps(value)}, which is not JSON")
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8 at byte {error.start}") from error
    if depth >= MAX_NESTING:
        raise ValueError(_too_deep())
    if isinstance(value, list | tuple):
        return [plain_value(each, depth + 1) for each in value]
    if isinstance(value, dict):
        return {
            plain_value(name, depth + 1): plain_value(each, depth + 1)
            for name, each in value.items()
        }
    raise ValueError(f"is a {type(value).__name__}, which is not text")


def _too_deep() -> str:
    return f"holds lists or objects nested over {MAX_NESTING} levels deep"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} is repeated")
    return fields


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"integers must have at most {MAX_DIGITS:,} digits, got {len(digits):,}")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)

"""Values of fields of a foreign configuration, checked."""

from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError

# Larger than any size of a model; with larger numbers, shapes alone would take for ages.
SIZE_LIMIT = 10_000_000
MAX_NUMBER = 1e15


def size(settings: Mapping[str, Any], name: str, where: str, *, least: int = 1) -> int:
    """Returns a size.

    Args:
        where: before the names of fields in messages, such as `config.json: decoder.`.

    Raises:
        UserError: if there is none, or it is not a whole number in [`least`, `MAX_SIZE`).
    """
    value = settings.get(name)
    if type(value) is not int or not least <= value < SIZE_LIMIT:
        rule = f"a whole number >= {least} and under {SIZE_LIMIT:,}"
        raise UserError(f"{where}{name} must be {rule}, got {value!r:.80}")
    return value


def number(
    settings: Mapping[str, Any], name: str, where: str, *, usual: int | float | None = None
) -> float:
    """Returns a number over 0.

    Args:
        usual: the number where the file has none; None if it must have one.

    Raises:
        UserError: if there is none, or it is none.
    """
    value = settings.get(name, usual)
    if type(value) not in (int, float) or not 0 < value < MAX_NUMBER:
        raise UserError(
            f"{where}{name} must be a number > 0 and under {MAX_NUMBER:.0e}, got {value!r:.80}"
        )
    return float(value)


def optional_number(settings: Mapping[str, Any], name: str | None, where: str) -> float | None:
    """Returns a number over 0, or None for null or no field.

    Raises:
        UserError: if it is something else.
    """
    if name is None or settings.get(name) is None:
        return None
    return number(settings, name, where)


def truth(settings: Mapping[str, Any], name: str, where: str) -> bool:
    """Returns a truth value.

    Raises:
        UserError: if it is none.
    """
    value = settings.get(name)
    if not isinstance(value, bool):
        raise UserError(f"{where}{name} must be true or false, got {value!r:.80}")
    return value

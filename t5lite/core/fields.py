"""Checks of configuration fields. Errors name a field as gin binds it, `CLASS.FIELD`."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, get_args

from t5lite.core.errors import UserError, check_choice
from t5lite.core.numbers import check_number

# Upper bound on counts and lengths of which each takes memory.
MAX_COUNT = 1 << 20
# Upper bound on steps, which are counted in 32 bits.
MAX_STEPS = 2**31 - 1


def field_name(owner: object, field: str) -> str:
    """Returns the name by which gin binds a field of `owner`.

    It is the name of the class, or the class attribute `gin_name` of a root such as `train`.

    >>> field_name(UserError(), "message")
    'UserError.message'
    """
    return f"{getattr(owner, 'gin_name', type(owner).__name__)}.{field}"


def field_error(owner: object, field: str, rule: str, remedy: str = "") -> UserError:
    """Returns the error for a field that breaks a rule: owner, rule, got and remedy.

    Args:
        rule: completes "FIELD must be ...".
        remedy: what to do about it, if the rule does not say.
    """
    suffix = f"; {remedy}" if remedy else ""
    return UserError(
        f"{field_name(owner, field)} must be {rule}, got {getattr(owner, field)!r}{suffix}"
    )


def check_counts(owner: object, *fields: str) -> None:
    """Checks that each field is a whole number from 1.

    Raises:
        UserError: naming the first field that is not, None among them.
    """
    for field in fields:
        value = getattr(owner, field)
        if type(value) is not int or value < 1:
            raise field_error(owner, field, "a whole number >= 1")


def check_fields(
    owner: object, fields: Collection[str], rule: str, holds: Callable[[float], bool]
) -> None:
    """Checks that each field is traced, or a finite number for which `holds` is true.

    A field that is declared as `... | None`, or has the default None, may be None.

    Raises:
        UserError: naming the first field that is none of these.
    """
    for field in fields:
        if getattr(owner, field) is None and not _may_be_none(owner, field):
            raise field_error(owner, field, rule)
        check_number(field_name(owner, field), getattr(owner, field), rule, holds)


def _may_be_none(owner: Any, name: str) -> bool:
    declared = {field.name: field for field in dataclasses.fields(owner)}.get(name)
    # Not a field, but a property.
    if declared is None:
        return True
    return declared.default is None or type(None) in get_args(declared.type)


def check_field_choice(owner: object, field: str, known: Collection[str]) -> None:
    """Checks that a field is one of the known names.

    Raises:
        UserError: with a suggestion, if it is not.
    """
    value: Any = getattr(owner, field)
    check_choice(field_name(owner, field), value, known)

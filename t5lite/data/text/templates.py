"""Text from the fields of a record: "translate English to German: {en}"."""

import string
from collections.abc import Mapping, Sequence

from t5lite.core.errors import UserError, suggestion


def fields_of(owner: str, template: str) -> tuple[str, ...]:
    """Returns the fields that a template names.

    >>> fields_of("Task.inputs", "translate {en}: {{literally}}")
    ('en',)

    Raises:
        UserError: for a template that is none.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{owner} {template!r} must be a template: {error}") from error
    fields = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        is_name = name.replace("_", "a").replace("-", "a").isalnum() and not name.isdigit()
        if form or conversion or not is_name:
            raise UserError(
                f"{owner} {template!r} must name fields plainly, as in {{text}}, got {{{name}}}; "
                "a brace that is text is doubled"
            )
        fields.append(name)
    return tuple(fields)


def check_fields(owner: str, template: str, known: Sequence[str]) -> None:
    """Raises a UserError where a template names a field that records have not."""
    for name in fields_of(owner, template):
        if name not in known:
            raise UserError(
                f"{owner} {template!r} names the field {name!r}; {suggestion(name, known)}"
            )


def fill(template: str, record: Mapping[str, str]) -> str:
    """Returns the text of a record.

    >>> fill("{a} and {b}", {"a": "{b}", "b": "1"})
    '{b} and 1'
    """
    try:
        return template.format_map(record)
    except KeyError as error:
        name = str(error.args[0])
        raise UserError(
            f"template {template!r} names the field {name!r}; {suggestion(name, record)}"
        ) from error

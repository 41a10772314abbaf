"""The range of lengths that objectives accept."""

from t5lite.core.fields import field_error

# Longer examples are rejected before anything is allocated for them.
MAX_LENGTH = 1 << 20


def check_length(owner: object, field: str, least: int) -> None:
    """Checks that a field of an objective is a length in tokens.

    Args:
        least: the smallest length that the objective can use.

    Raises:
        UserError: unless the field is an integer in [least, MAX_LENGTH].
    """
    value = getattr(owner, field)
    if type(value) is not int or not least <= value <= MAX_LENGTH:
        unit = "token" if least == 1 else "tokens"
        rule = f"at least {least} {unit} and at most {MAX_LENGTH:,}"
        raise field_error(owner, field, rule)

import dataclasses

import pytest

from t5lite.core.errors import UserError
from t5lite.core.fields import check_fields
from t5lite.core.numbers import Number, numeric


@dataclasses.dataclass
class Choices:
    steps: int
    limit: int | None
    # A default of None allows None, whatever the declared type.
    cap: int = None  # type: ignore[assignment]


@numeric
class Rates:
    rate: Number = 0.5
    decay: Number | None = None


@pytest.mark.parametrize(
    ("owner", "field"), [(Choices(None, None), "steps"), (Rates(rate=None), "rate")]
)
def test_none_is_rejected_for_a_field_that_needs_a_number(owner, field):
    message = f"{type(owner).__name__}.{field} must be at least 1, got None"
    with pytest.raises(UserError, match=message):
        check_fields(owner, (field,), "at least 1", lambda n: n >= 1)


def test_none_is_accepted_for_a_field_that_may_be_none():
    check_fields(Choices(1, None), ("limit", "cap"), "at least 1", lambda n: n >= 1)
    check_fields(Rates(), ("decay",), "at least 1", lambda n: n >= 1)

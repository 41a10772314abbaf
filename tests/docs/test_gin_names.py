"""The generated reference of gin names is complete."""

import re

from t5lite.public_names import TABLE
from tests.docs.pages import reference


def test_reference_lists_every_public_name() -> None:
    text = reference()
    listed = set(re.findall(r"^### (\S+)$|^\| `(optax\.[\w.]+)`", text, re.MULTILINE))
    assert {own or other for own, other in listed} == set(TABLE)


def test_reference_describes_every_parameter_of_t5lite() -> None:
    own = reference().split("\n## optax")[0]
    assert not re.findall(r"^`(\w+)` .*\n: \u2013$", own, re.MULTILINE)

"""Every test that a page names exists."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT

NAMED = sorted(
    {
        match
        for path in PAGES
        for match in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", path.read_text())
    }
)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_a_page_names_exists(file: str, name: str) -> None:
    text = (ROOT / file).read_text()
    assert not name or f"\ndef {name}(" in text

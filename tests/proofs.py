"""Which cases of a test the README's command runs, and which are proofs."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def proof(*values: Any) -> Any:
    """A case that is a proof."""
    return pytest.param(*values, marks=pytest.mark.proof)


def proofs_but(kept: Collection[str], cases: Iterable[str]) -> list[Any]:
    """All cases, of which those that are not kept are proofs."""
    cases = list(cases)
    assert set(kept) <= set(cases), set(kept) - set(cases)
    return [case if case in kept else proof(case) for case in cases]

"""JSON documents, which have no NaN and no infinity: such a number is null."""

import json
import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """Returns plain data with every number that is not finite replaced by None.

    >>> finite({"loss": float("nan"), "steps": [1, float("inf")]})
    {'loss': None, 'steps': [1, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def json_document(value: Any) -> str:
    """Returns plain data as JSON."""
    return json.dumps(finite(value), allow_nan=False)

"""The type checker that the import hook of jaxtyping applies to functions of the package."""

from collections.abc import Callable
from typing import Any

import beartype


def check_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that checks its arguments and its result.

    Functions that are defined within others stay as they are: each call of the outer one would
    build their checks again, which took a tenth of the time of the tests.
    """
    return function if "<locals>" in function.__qualname__ else beartype.beartype(function)

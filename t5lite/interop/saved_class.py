"""The class of transformers that a folder was saved from."""

from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError


def saved_class(settings: Mapping[str, Any], supported: Sequence[str], owner: str) -> str | None:
    """Returns how the name of the class ends; None if config.json does not name it.

    Args:
        supported: the ends of the names of supported classes.

    Raises:
        UserError: naming a class that is not supported.
    """
    architectures = settings.get("architectures")
    if architectures in (None, []):
        return None
    if not isinstance(architectures, list):
        raise UserError(
            f"{owner}/config.json: architectures must be a list, got {architectures!r:.80}"
        )
    named = str(architectures[0])
    for end in supported:
        if named.endswith(end):
            return end
    raise UserError(
        f"{owner} holds a {named:.80}, which is not supported; supported are classes that end in "
        f"{', '.join(supported)}"
    )

"""The separator between the parts of an input."""

from typing import Any

from t5lite.core.examples import Sentinels
from t5lite.core.fields import field_error


def check_separator(objective: Any, vocabulary: Sentinels) -> None:
    """Raises a UserError if the `separator` of an objective is not one token of the vocabulary."""
    ids = vocabulary.encode(objective.separator)
    if len(ids) != 1:
        rule = f"one token of the vocabulary, which has {len(ids)} for it"
        raise field_error(objective, "separator", rule, "use a sentinel or an added token")

"""Steps that change a record before it becomes text for the model: plain functions by name.

A step takes the fields of a record as text and returns them changed, or None to leave the record
out. A step of one's own is named "module:function".
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from t5lite.core.errors import UserError
from t5lite.core.named import named, versioned

Record = dict[str, str]
Preprocessor = Callable[[Record], Record | None]


def lowercase(record: Record) -> Record:
    """All letters small.

    >>> lowercase({"text": "Ab C"})
    {'text': 'ab c'}
    """
    return {name: text.lower() for name, text in record.items()}


def normalize_whitespace(record: Record) -> Record:
    r"""Runs of white space become one space, none at either end.

    >>> normalize_whitespace({"text": " a\n b "})
    {'text': 'a b'}
    """
    return {name: " ".join(text.split()) for name, text in record.items()}


def normalize_unicode(record: Record) -> Record:
    """Unicode's normal form NFKC, in which letters of full width are plain ones.

    >>> normalize_unicode({"text": "\uff21"})
    {'text': 'A'}
    """
    return {name: unicodedata.normalize("NFKC", text) for name, text in record.items()}


_TAG = re.compile(r"<[^>]*>")


def strip_html_tags(record: Record) -> Record:
    """Tags are taken out.

    >>> strip_html_tags({"text": "a<br />b"})
    {'text': 'a b'}
    """
    return {name: _TAG.sub(" ", text) for name, text in record.items()}


def drop_if_any_empty(record: Record) -> Record | None:
    """Leaves out a record with a field that holds no text.

    >>> drop_if_any_empty({"en": "a", "de": " "}) is None
    True
    """
    return record if all(text.strip() for text in record.values()) else None


PREPROCESSORS: Mapping[str, Preprocessor] = {
    step.__name__: step
    for step in (
        lowercase,
        normalize_whitespace,
        normalize_unicode,
        strip_html_tags,
        drop_if_any_empty,
    )
}


def preprocessor(name: str, *, owner: str = "Task.preprocessors") -> Preprocessor:
    """Returns a step by its name in this module, or as "module:function".

    Args:
        owner: who names it.

    Raises:
        UserError: where there is no such step.
    """
    return named(owner, name, PREPROCESSORS)


def changed(owner: str, steps: Sequence[str], record: Record, number: int) -> Record | None:
    """Returns the record after all steps, None where one leaves it out.

    Args:
        owner: who names the steps.
        number: of the record, for an error.

    Raises:
        UserError: where a step of the user's own fails.
    """
    after: Record | None = record
    for name in steps:
        if after is None:
            break
        try:
            after = preprocessor(name)(after)
        # Whatever the user's own step raises.
        except Exception as error:
            raise UserError(
                f"{owner}: {name!r} failed on record {number}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(after, dict | None):
            raise UserError(
                f"{owner}: {name!r} must return the fields of a record or None, got "
                f"{type(after).__name__}"
            )
    return after


def version(name: str) -> str:
    """Returns a name that changes with the source of the step."""
    return versioned("Task.preprocessors", name, PREPROCESSORS)

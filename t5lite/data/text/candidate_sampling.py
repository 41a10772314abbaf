"""A random choice of the candidates of a query, made anew whenever training reads its record."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5lite.core.errors import UserError, suggestion
from t5lite.core.fields import check_counts, field_error, field_name
from t5lite.data.text.fields import JsonText, Record
from t5lite.data.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleCandidates:
    """Keeps one relevant candidate of a query and some of the others, in the order of the lists.

    Each is drawn uniformly; without a relevant candidate all are drawn from the others. An
    augmentation, as those of `data.text.augmentations`.

    Args:
        count: of candidates that are kept; a shorter list stays as it is.
        relevance: the field with the relevance of each candidate, over 0 if it is relevant.
        fields: the fields with a list of something else for each candidate.

    Raises:
        UserError: for a count under 1, or fields that are no names.

    Source: Zhuang et al., RankT5.
    Differs: of several relevant candidates others may be among the rest that are drawn.

    >>> from t5lite.data.text.vocabularies import ByteVocabulary
    >>> sample = SampleCandidates(count=2, fields=["documents"])
    >>> record = {"documents": JsonText('["a", "b", "c"]'), "relevance": JsonText("[0, 0, 1]")}
    >>> sample.augment(record, np.random.default_rng(0), ByteVocabulary())
    {'documents': '["b", "c"]', 'relevance': '[0, 1]'}
    """

    count: int
    relevance: str = "relevance"
    fields: Sequence[str] = ("documents",)

    def __post_init__(self) -> None:
        check_counts(self, "count")
        if not self.fields or not all(isinstance(field, str) for field in self.fields):
            raise field_error(self, "fields", "names of fields, as in ['documents']")
        # gin passes a list, which is not hashable.
        object.__setattr__(self, "fields", tuple(self.fields))

    def augment(self, record: Record, rng: np.random.Generator, vocabulary: Vocabulary) -> Record:
        """Returns the record with fewer candidates.

        Raises:
            UserError: if a field is missing, is no list, or has another length than `relevance`.
        """
        names = (self.relevance, *self.fields)
        lists = {name: self._list(record, name) for name in names}
        if len({len(items) for items in lists.values()}) > 1:
            lengths = ", ".join(f"{len(items)} of {name!r}" for name, items in lists.items())
            raise UserError(f"{field_name(self, 'fields')} must have equal lengths, got {lengths}")
        total = len(lists[self.relevance])
        if total <= self.count:
            return record
        relevant = [number for number, x in enumerate(lists[self.relevance]) if float(x) > 0]
        first = rng.choice(relevant, 1).tolist() if relevant else []
        others = [number for number in range(total) if number not in first]
        drawn = rng.choice(others, self.count - len(first), replace=False).tolist()
        kept = sorted([*first, *drawn])
        fewer = {name: [items[number] for number in kept] for name, items in lists.items()}
        texts = {name: json.dumps(items, ensure_ascii=False) for name, items in fewer.items()}
        return {**record, **{name: JsonText(text) for name, text in texts.items()}}

    def _list(self, record: Record, name: str) -> list[Any]:
        owner = field_name(self, "relevance" if name == self.relevance else "fields")
        if name not in record:
            raise UserError(f"{owner} names the field {name!r}; {suggestion(name, record)}")
        items = getattr(record[name], "value", None)
        if not isinstance(items, list):
            raise UserError(f"{owner}: {name!r} must be a list, got {record[name][:60]!r}")
        return items

"""Special ids of a checkpoint: ends of sequence, padding, a forced first token, added tokens."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.fields import field_error

AddedTokens = tuple[tuple[str, int], ...]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Special ids of a checkpoint that differ from T5's, and the tokens added to its vocabulary.

    Args:
        pad_id: the id that exports name as padding. Padding is masked here, so no result depends
            on it.
        eos_ids: the ids that end a sequence. The first one ends the examples of training.
        forced_bos_id: the first token of every generated target; None for none.
        added_tokens: texts that are one token each, with their ids, such as {"<sep>": 32100}.

    Raises:
        UserError: if an id is not a whole number >= 0, `eos_ids` is empty, or two added tokens
            share a text or an id.
    """

    pad_id: int = 0
    eos_ids: Sequence[int] = (1,)
    forced_bos_id: int | None = None
    added_tokens: Mapping[str, int] | Sequence[tuple[str, int]] = ()

    def __post_init__(self) -> None:
        if not _is_id(self.pad_id):
            raise field_error(self, "pad_id", "a token id")
        if not (self.forced_bos_id is None or _is_id(self.forced_bos_id)):
            raise field_error(self, "forced_bos_id", "a token id or None")
        eos_ids = self.eos_ids
        if not isinstance(eos_ids, Sequence) or not eos_ids or not all(map(_is_id, eos_ids)):
            raise field_error(self, "eos_ids", "a list of at least one token id")
        object.__setattr__(self, "eos_ids", tuple(eos_ids))
        object.__setattr__(self, "added_tokens", self._checked_tokens())

    def _checked_tokens(self) -> AddedTokens:
        given: Any = self.added_tokens
        pairs = list(given.items()) if isinstance(given, Mapping) else [tuple(p) for p in given]
        rule = "texts with their token ids, such as {'<sep>': 32100}"
        if not all(len(p) == 2 and isinstance(p[0], str) and p[0] and _is_id(p[1]) for p in pairs):
            raise field_error(self, "added_tokens", rule)
        for index, what in ((0, "text"), (1, "id")):
            values = [pair[index] for pair in pairs]
            if repeated := [value for value in values if values.count(value) > 1]:
                remedy = f"{repeated[0]!r} is repeated"
                raise field_error(self, "added_tokens", f"{rule}, each {what} once", remedy)
        return tuple(sorted(pairs, key=lambda pair: pair[1]))

    @property
    def pairs(self) -> AddedTokens:
        """The added tokens and their ids, in the order of ids."""
        pairs: Any = self.added_tokens
        return pairs

    @property
    def texts(self) -> dict[int, str]:
        """The texts of the added tokens by their ids."""
        return {number: text for text, number in self.pairs}

    @property
    def largest_id(self) -> int:
        """The largest id that is named."""
        forced = () if self.forced_bos_id is None else (self.forced_bos_id,)
        return max((self.pad_id, *self.eos_ids, *forced, *self.texts))


def special_tokens_from(described: Mapping[str, Any]) -> SpecialTokens:
    """Returns the special tokens that `dataclasses.asdict` described.

    Raises:
        UserError: if a field is unknown to this version.
    """
    try:
        return SpecialTokens(**described)
    except TypeError as error:
        raise UserError(
            f"this version of t5lite does not know the checkpoint's special tokens: {error}"
        ) from error

"""Special ids of a checkpoint: ends of sequence, padding, first tokens, a mask, added tokens."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.fields import field_error

AddedTokens = tuple[tuple[str, int], ...]


# Ids are int32.
_ID_LIMIT = 2**31
_OPTIONAL_IDS = ("forced_bos_id", "bos_id", "mask_id")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < _ID_LIMIT


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Special ids of a checkpoint that differ from T5's, and the tokens added to its vocabulary.

    Args:
        pad_id: the id that exports name as padding. Padding is masked here, so no result depends
            on it.
        eos_ids: the ids that end a sequence. The first one ends the examples of training.
        forced_bos_id: the first token of every generated target; None for none.
        bos_id: the token that the inputs of an encoder begin with, as in BERT and T5Gemma, and
            separate documents whose every token is predicted; None for none, and 0 for documents. A
            decoder begins with `T5Config.start_token`.
        mask_id: the token that hides others in masked language modelling; None for sentinel 0.
        end_inputs: whether inputs end with the first of `eos_ids`, as in T5 and BERT and not in
            T5Gemma.
        added_tokens: texts that are one token each, with their ids, such as {"<sep>": 32100}.

    Raises:
        UserError: if an id is not a whole number in [0, 2**31), `eos_ids` is empty, or two added
            tokens share a text or an id.
    """

    pad_id: int = 0
    eos_ids: Sequence[int] = (1,)
    forced_bos_id: int | None = None
    bos_id: int | None = None
    mask_id: int | None = None
    end_inputs: bool = True
    added_tokens: Mapping[str, int] | Sequence[tuple[str, int]] = ()

    def __post_init__(self) -> None:
        if not _is_id(self.pad_id):
            raise field_error(self, "pad_id", "a token id")
        for field in _OPTIONAL_IDS:
            value = getattr(self, field)
            if not (value is None or _is_id(value)):
                raise field_error(self, field, "a token id or None")
        if not isinstance(self.end_inputs, bool):
            raise field_error(self, "end_inputs", "True or False")
        eos_ids = self.eos_ids
        if not isinstance(eos_ids, Sequence) or not eos_ids or not all(map(_is_id, eos_ids)):
            raise field_error(self, "eos_ids", "a list of at least one token id")
        object.__setattr__(self, "eos_ids", tuple(eos_ids))
        object.__setattr__(self, "added_tokens", self._checked_tokens())

    def __repr__(self) -> str:
        # NOTE: fingerprints hold it. Fields that earlier versions do not have are shown if set.
        shown = [f"pad_id={self.pad_id}", f"eos_ids={self.eos_ids}"]
        shown.append(f"forced_bos_id={self.forced_bos_id}")
        for field, usual in (("bos_id", None), ("mask_id", None), ("end_inputs", True)):
            if (value := getattr(self, field)) != usual:
                shown.append(f"{field}={value}")
        return f"SpecialTokens({', '.join(shown)}, added_tokens={self.added_tokens})"

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
        optional = [getattr(self, field) for field in _OPTIONAL_IDS]
        named = (number for number in optional if number is not None)
        return max((self.pad_id, *self.eos_ids, *named, *self.texts))


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

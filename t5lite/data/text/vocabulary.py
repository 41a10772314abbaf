"""The interface of vocabularies: text to token ids and back, with sentinels and added tokens.

The ids of T5: padding 0, end of sequence 1, unknown 2.

`<extra_id_N>` in a text is sentinel N, in training data as in requests, prefixes, choices and
references. It is text if the vocabulary has no sentinel N, if N has leading zeros, or if
`parse_sentinels` is False. Source: google/seqio@main:seqio/vocabularies.py, where the sentinels are
symbols of the vocabulary.
"""

import abc
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int

from t5lite.core.examples import START_TOKEN
from t5lite.core.fields import field_error
from t5lite.data.text.kept_texts import kept_pattern
from t5lite.data.text.special_tokens import SpecialTokens

PAD_ID = 0
EOS_ID = 1
UNKNOWN_ID = 2
NUM_SPECIAL = 3

# More sentinels are rejected before anything is allocated for them.
MAX_SENTINELS = 1 << 20

SENTINEL_PATTERN = r"<extra_id_(?:0|[1-9][0-9]{0,8})>"


class Vocabulary(abc.ABC):
    """Ids of text pieces, then `num_sentinels` sentinels; the first sentinel has the highest id.

    Args:
        num_sentinels: number of sentinels.
        special: special ids other than T5's, and added tokens.
        parse_sentinels: whether `<extra_id_N>` in a text is a sentinel; False for literal text.

    Raises:
        UserError: if `num_sentinels` is out of range, or `parse_sentinels` is no bool.
    """

    num_sentinels: int
    special: SpecialTokens
    parse_sentinels: bool

    # The first ids, none of which is text.
    num_special: ClassVar[int] = NUM_SPECIAL

    def __post_init__(self) -> None:
        if type(self.num_sentinels) is not int or not 0 <= self.num_sentinels <= MAX_SENTINELS:
            raise field_error(self, "num_sentinels", f"an integer in [0, {MAX_SENTINELS:,}]")
        if not isinstance(self.parse_sentinels, bool):
            raise field_error(self, "parse_sentinels", "True or False")

    @property
    @abc.abstractmethod
    def sentinel_stop(self) -> int:
        """One more than the id of the first sentinel, which is the highest."""

    @property
    def piece_stop(self) -> int:
        """One more than the highest id of a text piece."""
        return self.sentinel_stop - self.num_sentinels

    @property
    def size(self) -> int:
        """Number of ids, including sentinels and added tokens."""
        return max(self.sentinel_stop, self.piece_stop, 1 + self.special.largest_id)

    @abc.abstractmethod
    def encode_plain(self, text: str | bytes) -> Int[np.ndarray, "length"]:
        """Returns the ids of literal text."""

    def encode_plain_after(self, text: str) -> Int[np.ndarray, "length"]:
        """Returns the ids of literal text after a sentinel or an added token.

        It begins a word only if it begins with white space.
        """
        return self.encode_plain(text)

    def encode(self, text: str | bytes) -> Int[np.ndarray, "length"]:
        """Returns the ids of a text, without an end of sequence.

        Sentinels and added tokens are one id each. Bytes are literal text.
        """
        return self.encode_plain(text) if isinstance(text, bytes) else self._encode(text)

    def encode_after(self, text: str) -> Int[np.ndarray, "length"]:
        """Returns the ids of a text that follows a sentinel or an added token."""
        return self._encode(text, after=True)

    def _encode(self, text: str, *, after: bool = False) -> Int[np.ndarray, "length"]:
        encode: Callable[[str], Int[np.ndarray, "_"]]
        encode = self.encode_plain_after if after else self.encode_plain
        # Most texts have no marks; this is cheaper than the pattern.
        if not self.special.pairs and "<extra_id_" not in text:
            return encode(text)
        parts: list[Int[np.ndarray, "_"]] = []
        start = 0
        for match in self._marks.finditer(text) if self._marks else ():
            number = self._mark_id(match.group())
            if number is None:
                continue
            parts += [encode(text[start : match.start()]), np.array([number], np.int32)]
            start = match.end()
            encode = self.encode_plain_after
        last = encode(text[start:])
        return np.concatenate([*parts, last]) if parts else last

    @functools.cached_property
    def _marks(self) -> re.Pattern[str] | None:
        """Matches sentinels and added tokens, the longest added token first."""
        sentinels = [SENTINEL_PATTERN] if self.parse_sentinels else []
        return kept_pattern((text for text, _ in self.special.pairs), *sentinels)

    @property
    def kept_texts(self) -> re.Pattern[str] | None:
        """Matches the texts that preprocessors leave as they are; None if there are none."""
        return self._marks

    def _mark_id(self, text: str) -> int | None:
        added = dict(self.special.pairs).get(text)
        if added is not None:
            return added
        index = int(text.removeprefix("<extra_id_").removesuffix(">"))
        return self.sentinel(index) if index < self.num_sentinels else None

    def missing_sentinel(self, text: str) -> str | None:
        """Returns the first `<extra_id_N>` of a text that the vocabulary does not have, if any."""
        if not self.parse_sentinels:
            return None
        sentinels = re.findall(SENTINEL_PATTERN, text)
        return next((each for each in sentinels if self._mark_id(each) is None), None)

    @abc.abstractmethod
    def decode_pieces(self, ids: Int[np.ndarray, "length"]) -> str:
        """Returns the text of ids without sentinels; special ids have no text."""

    def decode_after(self, ids: Int[np.ndarray, "length"]) -> str:
        """Returns the text of ids after a sentinel or an added token; inverts `encode_after`."""
        return self.decode_pieces(ids)

    def decode(self, ids: Int[np.ndarray, "length"], *, unknown: str = "") -> str:
        """Returns the text up to the first end of sequence.

        Sentinels read `<extra_id_N>`, added tokens as they are, and ids beyond the vocabulary
        `<unk>`.

        Args:
            unknown: the text of an unknown piece.
        """
        ends = np.flatnonzero(np.isin(ids, self.stop_ids))
        ids = ids[: ends[0]] if len(ends) else ids
        roles = (self.special.pad_id, self.special.bos_id, self.special.mask_id)
        names = {i: text for i, text in self.special.texts.items() if i not in roles}
        if unknown:
            names[self.unknown_id] = unknown
        is_named = np.isin(ids, list(names))
        kept = ~np.isin(ids, self._not_text) | is_named
        ids = ids[kept]
        is_outside = ids >= max(self.sentinel_stop, self.piece_stop)
        is_mark = self.is_sentinel(ids) | is_outside | is_named[kept]
        text: list[str] = []
        start = 0
        for at in [*np.flatnonzero(is_mark), len(ids)]:
            decode = self.decode_after if start else self.decode_pieces
            text.append(decode(ids[start:at]))
            if at < len(ids):
                index = self.sentinel_stop - 1 - int(ids[at])
                # A model whose vocabulary is padded may predict ids without a meaning.
                sentinel = "<unk>" if is_outside[at] else f"<extra_id_{index}>"
                text.append(names.get(int(ids[at]), sentinel))
            start = at + 1
        return "".join(text)

    @abc.abstractmethod
    def word_starts(self, ids: Int[np.ndarray, "length"]) -> Int[np.ndarray, "words"]:
        """Returns the positions at which words begin; white space separates words."""

    def word_numbers(self, ids: Int[np.ndarray, "length"]) -> Int[np.ndarray, "length"]:
        """Returns the number of the word that each id is a part of.

        Words are those of `word_starts`, each with the white space after it that is ids of its own.
        """
        begins = np.zeros(len(ids), np.int32)
        begins[self.word_starts(ids)] = 1
        return np.cumsum(begins)

    def num_bytes(self, ids: Int[np.ndarray, "length"]) -> int:
        """Returns the UTF-8 bytes of the text of ids; special ids and sentinels have none."""
        return len(self.decode_pieces(ids[self.is_text(ids)]).encode())

    @property
    def is_stand_in(self) -> bool:
        """Whether it only replaces a vocabulary whose file is missing."""
        return False

    @property
    def has_unknown_pieces(self) -> bool:
        """Whether some texts have no pieces, so that their ids are `unknown_id`."""
        return False

    @property
    def fingerprint(self) -> str:
        """The same for vocabularies that encode alike, wherever their files are."""
        return f"{type(self).__name__}(num_sentinels={self.num_sentinels}{self._options_print})"

    @property
    def _options_print(self) -> str:
        """The part of the fingerprint that vocabularies with default options do not have."""
        options = "" if self.special == SpecialTokens() else f", special={self.special}"
        return options if self.parse_sentinels else f"{options}, parse_sentinels=False"

    def describe(self) -> dict[str, Any]:
        """Returns the fields of the vocabulary as a JSON value, without unused options."""
        assert dataclasses.is_dataclass(self)
        described = {"kind": type(self).__name__, **dataclasses.asdict(self)}
        if self.special == SpecialTokens():
            del described["special"]
        if self.parse_sentinels:
            del described["parse_sentinels"]
        if described.get("first_sentinel") is None:
            described.pop("first_sentinel", None)
        if "path" in described:
            described["path"] = str(pathlib.Path(os.path.expanduser(described["path"])).absolute())
        return described

    @property
    def eos_id(self) -> int:
        """The id that ends the sequences of training examples."""
        return self.special.eos_ids[0]

    @property
    def unknown_id(self) -> int:
        """The id of text without a piece."""
        return UNKNOWN_ID

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a generated target."""
        return tuple(self.special.eos_ids)

    @property
    def first_ids(self) -> tuple[int, ...]:
        """The ids that every generated target begins with."""
        forced = self.special.forced_bos_id
        return () if forced is None else (forced,)

    @property
    def first_input_ids(self) -> tuple[int, ...]:
        """The ids that the inputs of an encoder begin with."""
        return () if self.special.bos_id is None else (self.special.bos_id,)

    @property
    def document_start(self) -> int:
        """The id before the first token of a document whose every token is predicted."""
        return START_TOKEN if self.special.bos_id is None else self.special.bos_id

    @property
    def last_input_ids(self) -> tuple[int, ...]:
        """The ids that inputs end with."""
        return (self.eos_id,) if self.special.end_inputs else ()

    @property
    def mask_id(self) -> int | None:
        """The id that hides a token in masked language modelling, if there is one."""
        if self.special.mask_id is not None:
            return self.special.mask_id
        return self.sentinel(0) if self.num_sentinels else None

    @property
    def text_ids(self) -> range:
        """Ids of text pieces: those before the sentinels or, if they are more, those after."""
        before = range(self.num_special, min(self.sentinel_start, self.piece_stop))
        after = range(self.sentinel_stop, self.piece_stop)
        return max(before, after, key=len)

    def is_text(self, ids: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        """Returns which ids are text pieces: neither special ids, sentinels nor added tokens."""
        is_piece = (ids >= self.num_special) & (ids < self.piece_stop) & ~self.is_sentinel(ids)
        return is_piece & ~np.isin(ids, self._not_text)

    def is_sentinel(self, ids: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        """Returns which ids are sentinels."""
        return (ids >= self.sentinel_start) & (ids < self.sentinel_stop)

    @functools.cached_property
    def _not_text(self) -> Int[np.ndarray, "_"]:
        special = self.special
        mask = () if special.mask_id is None else (special.mask_id,)
        firsts = (*self.first_ids, *self.first_input_ids, *mask)
        others = (special.pad_id, *special.eos_ids, *firsts, *special.texts)
        return np.array(others, np.int32)

    @property
    def sentinel_start(self) -> int:
        """The id of the last sentinel, which is the lowest."""
        return self.sentinel_stop - self.num_sentinels

    def sentinel(self, index: int) -> int:
        """Returns the id of `<extra_id_index>`; the id of index 0 is the highest."""
        assert 0 <= index < self.num_sentinels, (index, self.num_sentinels)
        return self.sentinel_stop - 1 - index

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
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from t5lite.core.fields import field_error
from t5lite.data.text.special_tokens import SpecialTokens

PAD_ID = 0
EOS_ID = 1
UNKNOWN_ID = 2
NUM_SPECIAL = 3

# More sentinels are rejected before anything is allocated for them.
MAX_SENTINELS = 1 << 20

_SENTINEL = r"<extra_id_(?:0|[1-9][0-9]{0,8})>"


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
    def size(self) -> int:
        """Number of ids, including sentinels and added tokens."""
        return max(self.sentinel_stop, 1 + self.special.largest_id)

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
        added = sorted((text for text, _ in self.special.pairs), key=len, reverse=True)
        patterns = [*map(re.escape, added), *([_SENTINEL] if self.parse_sentinels else [])]
        return re.compile("|".join(patterns)) if patterns else None

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
        sentinels = re.findall(_SENTINEL, text)
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
        names = dict(self.special.texts)
        if unknown:
            names[self.unknown_id] = unknown
        is_named = np.isin(ids, list(names))
        kept = ~np.isin(ids, self._not_text) | is_named
        ids = ids[kept]
        is_mark = (ids >= self.text_ids.stop) | is_named[kept]
        text: list[str] = []
        start = 0
        for at in [*np.flatnonzero(is_mark), len(ids)]:
            decode = self.decode_after if start else self.decode_pieces
            text.append(decode(ids[start:at]))
            if at < len(ids):
                index = self.sentinel_stop - 1 - int(ids[at])
                # A model whose vocabulary is padded may predict ids without a meaning.
                sentinel = f"<extra_id_{index}>" if index >= 0 else "<unk>"
                text.append(names.get(int(ids[at]), sentinel))
            start = at + 1
        return "".join(text)

    @abc.abstractmethod
    def word_starts(self, ids: Int[np.ndarray, "length"]) -> Int[np.ndarray, "words"]:
        """Returns the positions at which words begin; white space separates words."""

    def num_bytes(self, ids: Int[np.ndarray, "length"]) -> int:
        """Returns the UTF-8 bytes of the text of ids; special ids and sentinels have none."""
        return len(self.decode_pieces(ids[self.is_text(ids)]).encode())

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
    def text_ids(self) -> range:
        """The ids of text pieces: neither special ids nor sentinels."""
        return range(NUM_SPECIAL, self.sentinel_stop - self.num_sentinels)

    def is_text(self, ids: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        """Returns which ids are text pieces: neither special ids, sentinels nor added tokens."""
        is_piece = (ids >= self.text_ids.start) & (ids < self.text_ids.stop)
        return is_piece & ~np.isin(ids, self._not_text)

    @functools.cached_property
    def _not_text(self) -> Int[np.ndarray, "_"]:
        special = self.special
        others = (special.pad_id, *special.eos_ids, *self.first_ids, *special.texts)
        return np.array(others, np.int32)

    def sentinel(self, index: int) -> int:
        """Returns the id of `<extra_id_index>`; the id of index 0 is the highest."""
        assert 0 <= index < self.num_sentinels, (index, self.num_sentinels)
        return self.sentinel_stop - 1 - index

"""The vocabulary of a `tokenizer.json`, which the `tokenizers` package runs."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from t5lite.core.errors import UserError, reason_of
from t5lite.core.fields import field_error, field_name
from t5lite.data.text.kept_texts import kept_pattern
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabulary import SENTINEL_PATTERN, Vocabulary

# White space, as added tokens have it; in the pieces of byte-level and of SentencePiece's models.
_PLAIN_SPACES = " \n\t\r\v\f"
_BYTE_LEVEL_SPACES = _PLAIN_SPACES + "\u0120\u010a\u0109\u010d\u010b\u010c"
_OTHER_SPACES = _PLAIN_SPACES + "\u2581"
# Parts of the file that do not change the ids of a text.
_WITHOUT_EFFECT = ("version", "truncation", "padding", "post_processor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizersVocabulary(Vocabulary):
    """A tokenizer.json of Hugging Face (BPE, WordPiece), with sentinels after its ids.

    Its added tokens, such as `<bos>`, are one id each wherever a text holds them; special ones have
    no text. Needs the package `tokenizers`.

    Args:
        path: of the file.
        num_sentinels: ids after the last one of the file.
        first_sentinel: the id of the file that is sentinel 0 instead, from which the others count
            down, for ids that text does not use, such as Gemma's `<unused98>` to `<unused0>`.
        special: the special ids among those of the file.
        parse_sentinels: whether `<extra_id_N>` in a text is a sentinel, and the text of a special
            token its id; False for literal text.

    Raises:
        UserError: if the package or the file is missing, or the file is no tokenizer or draws
            pieces at random; if a number or an id is out of range, or `special` adds tokens.
    """

    path: str
    num_sentinels: int = 0
    first_sentinel: int | None = None
    special: SpecialTokens = SpecialTokens()
    parse_sentinels: bool = True

    # Special ids are those that the file names.
    num_special: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_first_sentinel(self, self.piece_stop)
        if self.special.pairs:
            text = self.special.pairs[0][0]
            raise UserError(
                f"SpecialTokens.added_tokens must be empty for a {type(self).__name__}, got "
                f"{text!r}; add them to {self.path}"
            )
        if self.special.largest_id >= self.piece_stop:
            raise UserError(
                f"the ids of SpecialTokens must be under {self.piece_stop}, the ids of "
                f"{self.path}, got {self.special.largest_id}"
            )

    @functools.cached_property
    def _file(self) -> "_File":
        return _file(self.path, f"{field_name(self, 'path')} {self.path}")

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return self._with_sentinels(self._file.content)

    @functools.cached_property
    def _literal_tokenizer(self) -> Any:
        """The tokenizer to which special tokens are text."""
        content = json.loads(self._file.content)
        content["added_tokens"] = [t for t in content["added_tokens"] if not t["special"]]
        return library_tokenizer(json.dumps(content), self.path)

    def _with_sentinels(self, content: str) -> Any:
        import tokenizers

        tokenizer = library_tokenizer(content, self.path)
        names = [self.sentinel_text(index) for index in reversed(range(self.num_sentinels))]
        # New ones get ids from the last id of the file upwards.
        tokenizer.add_special_tokens(
            [tokenizers.AddedToken(name, normalized=False, special=True) for name in names]
        )
        for index in range(self.num_sentinels):
            number = tokenizer.token_to_id(self.sentinel_text(index))
            if number != self.sentinel(index):
                raise UserError(
                    f"{self.path} gives the sentinel <extra_id_{index}> the id {number}, not "
                    f"{self.sentinel(index)}; name its own as "
                    f"{field_name(self, 'first_sentinel')}"
                )
        return tokenizer

    @property
    def texts(self) -> Mapping[int, str]:
        """The texts of all tokens of the file by their ids."""
        return self._file.texts

    @property
    def added_texts(self) -> Mapping[int, str]:
        """The texts of its added tokens, which are one id wherever a text holds them."""
        return self._file.added

    def sentinel_text(self, index: int) -> str:
        """Returns the text of a sentinel in the file."""
        if self.first_sentinel is None:
            return f"<extra_id_{index}>"
        return self._file.texts[self.first_sentinel - index]

    def tokenizer_json(self) -> str:
        """Returns the content of the file, to which the sentinels are added."""
        return (
            str(self._tokenizer.to_str(pretty=True)) if self.num_sentinels else self._file.content
        )

    @property
    def sentinel_stop(self) -> int:
        if self.first_sentinel is not None:
            return self.first_sentinel + 1
        return self.piece_stop + self.num_sentinels

    @functools.cached_property
    def piece_stop(self) -> int:
        return 1 + max(self._file.texts)

    @functools.cached_property
    def text_ids(self) -> range:
        """The longest range of ids without special ones."""
        ends = [-1, *sorted({*self._not_text.tolist(), *self._sentinel_ids}), self.piece_stop]
        ends = [end for end in ends if end <= self.piece_stop]
        ranges = (range(a + 1, b) for a, b in itertools.pairwise(ends))
        return max(ranges, key=len)

    @property
    def _sentinel_ids(self) -> range:
        return range(self.sentinel_start, self.sentinel_stop)

    @functools.cached_property
    def _not_text(self) -> Int[np.ndarray, "_"]:
        special = [i for i in self._file.special if i not in self._sentinel_ids]
        return np.array([*super()._not_text, *special], np.int32)

    @property
    def unknown_id(self) -> int:
        unknown = self._file.unknown
        # An id that no text has.
        return self.size if unknown is None else unknown

    @property
    def has_unknown_pieces(self) -> bool:
        return self._file.unknown is not None

    @functools.cached_property
    def fingerprint(self) -> str:
        rest = "" if self.first_sentinel is None else f", first_sentinel={self.first_sentinel}"
        rest += self._options_print
        digest = self._file.digest
        return f"{type(self).__name__}({digest}, num_sentinels={self.num_sentinels}{rest})"

    @functools.cached_property
    def kept_texts(self) -> re.Pattern[str] | None:
        """Matches sentinels, and the special and other added tokens of the file."""
        # White space that is a token is text all the same.
        names = [text for text in self._file.added.values() if len(text.strip()) > 1]
        return kept_pattern(names, *([SENTINEL_PATTERN] if self.parse_sentinels else []))

    def encode_plain(self, text: str | bytes) -> Int[np.ndarray, "length"]:
        # Bytes that are not UTF-8 become replacement characters.
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        return _ids(self._literal_tokenizer, plain)

    def _encode(self, text: str, *, after: bool = False) -> Int[np.ndarray, "length"]:
        if not self.parse_sentinels:
            return self.encode_plain(text)
        if self.num_sentinels and self.first_sentinel is not None and "<extra_id_" in text:
            text = re.sub(SENTINEL_PATTERN, self._own_text, text)
        if after and self.num_sentinels:
            return _ids(self._tokenizer, self.sentinel_text(0) + text)[1:]
        return _ids(self._tokenizer, text)

    def _own_text(self, match: re.Match[str]) -> str:
        number = self._mark_id(match.group())
        return match.group() if number is None else self._file.texts[number]

    def word_starts(self, ids: Int[np.ndarray, "length"]) -> Int[np.ndarray, "words"]:
        spaces = self._file.spaces
        if spaces is None:
            raise UserError(
                f"{self.path} must have pieces with white space to find words, got a model that "
                "drops it; use a byte-level or SentencePiece vocabulary"
            )
        starts = []
        follows_space = True
        for at, number in enumerate(ids.tolist()):
            piece = self._file.texts.get(number, "")
            if piece.strip(spaces) and (follows_space or piece[0] in spaces):
                starts.append(at)
            follows_space = piece[-1:] in spaces if piece else follows_space
        return np.array(starts, np.int64)

    def word_numbers(self, ids: Int[np.ndarray, "length"]) -> Int[np.ndarray, "length"]:
        continuation = self._file.continuation
        if continuation is None:
            return super().word_numbers(ids)
        # WordPiece splits words at punctuation, which is words of its own.
        pieces = [self._file.texts.get(number, "") for number in ids.tolist()]
        begins = [not piece.startswith(continuation) for piece in pieces]
        return np.cumsum(np.array(begins, np.int32))

    def decode_pieces(self, ids: Int[np.ndarray, "length"]) -> str:
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False))

    def decode_after(self, ids: Int[np.ndarray, "length"]) -> str:
        if not self.num_sentinels:
            return self.decode_pieces(ids)
        before = self.decode_pieces(np.array([self.sentinel(0)], np.int32))
        whole = self.decode_pieces(np.append(np.int32(self.sentinel(0)), ids))
        return whole.removeprefix(before)


def check_first_sentinel(vocabulary: Any, piece_stop: int) -> None:
    """Checks that the sentinels of a vocabulary are ids of its file, if it says so.

    Raises:
        UserError: if one of them is not.
    """
    first = vocabulary.first_sentinel
    least = max(vocabulary.num_sentinels - 1, 0)
    if first is not None and not (type(first) is int and least <= first < piece_stop):
        rule = f"None or an id in [{least}, {piece_stop}), for num_sentinels ids down from it"
        raise field_error(vocabulary, "first_sentinel", rule)


@dataclasses.dataclass(frozen=True)
class _File:
    """What a tokenizer.json says besides how it encodes.

    Args:
        content: the text of the file.
        digest: of the parts that change ids.
        texts: the pieces and added tokens by their ids.
        added: the texts of the added tokens by their ids.
        special: the ids of the special ones.
        unknown: the id of text without a piece; None if every text has pieces.
        spaces: the characters of pieces that are white space; None if there are none.
        continuation: begins the pieces of WordPiece that continue a word; None for other models.
    """

    content: str
    digest: str
    texts: Mapping[int, str]
    added: Mapping[int, str]
    special: tuple[int, ...]
    unknown: int | None
    spaces: str | None
    continuation: str | None


def _file(path: str, owner: str) -> _File:
    file = pathlib.Path(os.path.expanduser(path))
    if not file.is_file():
        raise UserError(f"{owner} is not a file")
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{owner} must be a tokenizer.json of the tokenizers library ({reason_of(error)})"
        ) from error
    tokenizer = library_tokenizer(text, owner)
    model = content["model"]
    added = content["added_tokens"]
    if model.get("dropout"):
        raise UserError(
            f"{owner}: model.dropout must be null, got {model['dropout']!r:.40}: pieces would be "
            "drawn at random"
        )
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    kept = {name: part for name, part in content.items() if name not in _WITHOUT_EFFECT}
    kept_text = json.dumps(kept, sort_keys=True, ensure_ascii=False)
    return _File(
        content=text,
        digest=hashlib.sha256(kept_text.encode(errors="surrogatepass")).hexdigest()[:16],
        texts={number: piece for piece, number in vocab.items()},
        added={token["id"]: token["content"] for token in added},
        special=tuple(token["id"] for token in added if token["special"]),
        unknown=_unknown_id(model, vocab),
        spaces=_spaces(content),
        continuation=_continuation(model),
    )


def library_tokenizer(content: str, owner: str) -> Any:
    """Returns the library's tokenizer of the content of a tokenizer.json.

    Raises:
        UserError: naming `owner`, if the library is not installed or does not accept the content.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            f"{owner} needs the package tokenizers; pip install 't5lite[tokenizers]'"
        ) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
    # The library raises plain Exceptions.
    except Exception as error:
        raise UserError(
            f"{owner} must be a tokenizer.json of the tokenizers library: {reason_of(error)}"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _ids(tokenizer: Any, text: str) -> Int[np.ndarray, "length"]:
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def _unknown_id(model: Mapping[str, Any], vocab: Mapping[str, int]) -> int | None:
    # With byte fallback, every text has pieces.
    if model.get("byte_fallback"):
        return None
    number = model.get("unk_id")
    return number if isinstance(number, int) else vocab.get(model.get("unk_token") or "")


def _continuation(model: Mapping[str, Any]) -> str | None:
    prefix: str | None = model.get("continuing_subword_prefix")
    return prefix if model.get("type") == "WordPiece" and prefix else None


def _spaces(content: Mapping[str, Any]) -> str | None:
    """Returns the white space of pieces, by the decoder of the file."""
    decoder = content.get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    kinds = {step.get("type") for step in steps}
    if kinds & {"WordPiece", "BPEDecoder", "CTC", None}:
        return None
    return _BYTE_LEVEL_SPACES if "ByteLevel" in kinds else _OTHER_SPACES

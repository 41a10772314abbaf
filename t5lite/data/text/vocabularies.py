"""Text to token ids and back, with sentinels: pad 0, end of sequence 1, unknown 2."""

import abc
import dataclasses
import functools
import hashlib
import importlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from t5lite.core.errors import UserError, choose
from t5lite.core.fields import field_name
from t5lite.data.text.special_tokens import SpecialTokens, special_tokens_from

PAD_ID, EOS_ID = 0, 1
NUM_SPECIAL = 3

# Longer texts are encoded piece by piece: SentencePiece needs many times their size at once.
PIECE_CHARACTERS = 100_000


def _pieces(text: str, *, begins_word: bool) -> Iterator[tuple[str, bool]]:
    """Cuts a long text, at white space where there is some, and tells which pieces begin a word.

    Args:
        begins_word: whether the first one does.
    """
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = start + PIECE_CHARACTERS
        space = max(text.rfind(character, start + 1, end) for character in " \n\t")
        end = space if space > 0 else end
        yield text[start:end], begins_word
        begins_word = space > 0
        start = end + begins_word
    yield text[start:], begins_word


class Vocabulary(abc.ABC):
    """Ids of pieces of text, the last `num_sentinels` of them sentinels, counted downwards."""

    num_sentinels: int
    special: SpecialTokens

    @property
    @abc.abstractmethod
    def sentinel_stop(self) -> int:
        """One more than the id of the first sentinel, which is the highest."""

    @property
    def size(self) -> int:
        """Ids in use, sentinels and added tokens included."""
        return max(self.sentinel_stop, 1 + self.special.largest_id)

    @abc.abstractmethod
    def encode_plain(self, text: str | bytes) -> Int[np.ndarray, "length"]:
        """Returns the ids of text without added tokens."""

    def encode_plain_behind(self, text: str) -> Int[np.ndarray, "length"]:
        """Returns the ids of text without added tokens that follows a sentinel or an added token.

        It need not begin a word.
        """
        return self.encode_plain(text)

    def encode(self, text: str | bytes) -> Int[np.ndarray, "length"]:
        """Returns the ids of the text, added tokens included, with no end of sequence."""
        return self._encode_added(text, self.encode_plain)

    @abc.abstractmethod
    def decode_pieces(self, ids: Int[np.ndarray, "length"]) -> str:
        """Returns the text of ids without sentinels; special ids have none."""

    def encode_behind(self, text: str) -> Int[np.ndarray, "length"]:
        """Returns the ids of text that follows a sentinel: it need not begin a word."""
        return self._encode_added(text, self.encode_plain_behind)

    def _encode_added(
        self, text: str | bytes, encode_first: Callable[[Any], Int[np.ndarray, "_"]]
    ) -> Int[np.ndarray, "length"]:
        if not self.special.pairs:
            return encode_first(text)
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        ids_of = dict(self.special.pairs)
        first, *rest = self.special.split(plain)
        parts = [encode_first(first)]
        for token, behind in zip(rest[::2], rest[1::2], strict=True):
            parts += [np.array([ids_of[token]], np.int32), self.encode_plain_behind(behind)]
        return np.concatenate(parts)

    def decode_behind(self, ids: Int[np.ndarray, "length"]) -> str:
        """Returns the text of ids that go on behind a sentinel, as `encode_behind` takes it."""
        return self.decode_pieces(ids)

    @abc.abstractmethod
    def word_starts(self, ids: Int[np.ndarray, "length"]) -> Int[np.ndarray, "words"]:
        """Returns the places at which words begin, words being what spaces separate."""

    def num_bytes(self, ids: Int[np.ndarray, "length"]) -> int:
        """Returns the UTF-8 bytes of the text of ids; special ids and sentinels have none."""
        return len(self.decode_pieces(ids[self.is_text(ids)]).encode())

    @property
    def fingerprint(self) -> str:
        """The same for vocabularies that encode alike, wherever their files are."""
        return f"{type(self).__name__}(num_sentinels={self.num_sentinels}{self._special_print})"

    @property
    def _special_print(self) -> str:
        """The part of the fingerprint that vocabularies with T5's special ids do not have."""
        return "" if self.special == SpecialTokens() else f", special={self.special}"

    def describe(self) -> dict[str, Any]:
        """Returns all that it is, for JSON."""
        assert dataclasses.is_dataclass(self)
        described = {"kind": type(self).__name__, **dataclasses.asdict(self)}
        if self.special == SpecialTokens():
            del described["special"]
        if "path" in described:
            described["path"] = str(pathlib.Path(described["path"]).expanduser().absolute())
        return described

    @property
    def eos_id(self) -> int:
        """The id that closes a sequence."""
        return self.special.eos_ids[0]

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
        """The ids of pieces of text: neither special nor sentinels."""
        return range(NUM_SPECIAL, self.sentinel_stop - self.num_sentinels)

    def is_text(self, ids: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        """Returns which ids are pieces of text: neither special nor sentinels nor added."""
        is_piece = (ids >= self.text_ids.start) & (ids < self.text_ids.stop)
        return is_piece & ~np.isin(ids, self._not_text)

    @functools.cached_property
    def _not_text(self) -> Int[np.ndarray, "_"]:
        special = self.special
        others = (special.pad_id, *special.eos_ids, *self.first_ids, *special.texts)
        return np.array(others, np.int32)

    def sentinel(self, index: int) -> int:
        """Returns the id of `<extra_id_index>`; that of index 0 is the highest."""
        assert 0 <= index < self.num_sentinels, (index, self.num_sentinels)
        return self.sentinel_stop - 1 - index

    def decode(self, ids: Int[np.ndarray, "length"]) -> str:
        """Returns the text up to the first end of sequence.

        Sentinels read `<extra_id_N>`, added tokens as they are, ids without a meaning `<unk>`.
        """
        ends = np.flatnonzero(np.isin(ids, self.stop_ids))
        ids = ids[: ends[0]] if len(ends) else ids
        added = self.special.texts
        ids = ids[~np.isin(ids, self._not_text) | np.isin(ids, list(added))]
        text: list[str] = []
        start = 0
        is_mark = (ids >= self.text_ids.stop) | np.isin(ids, list(added))
        for at in [*np.flatnonzero(is_mark), len(ids)]:
            decode = self.decode_behind if start else self.decode_pieces
            text.append(decode(ids[start:at]))
            if at < len(ids):
                index = self.sentinel_stop - 1 - int(ids[at])
                # A model whose vocabulary is padded may predict ids without a meaning.
                sentinel = f"<extra_id_{index}>" if index >= 0 else "<unk>"
                text.append(added.get(int(ids[at]), sentinel))
            start = at + 1
        return "".join(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteVocabulary(Vocabulary):
    """UTF-8 bytes: byte b has the id b + 3, sentinels follow.

    >>> vocabulary = ByteVocabulary()
    >>> vocabulary.size, vocabulary.encode("hi").tolist(), vocabulary.sentinel(0)
    (384, [107, 108], 383)
    >>> vocabulary.decode(np.array([107, 383, 108, 1, 107]))
    'h<extra_id_0>i'
    """

    num_sentinels: int = 125
    special: SpecialTokens = SpecialTokens()

    @property
    def sentinel_stop(self) -> int:
        return NUM_SPECIAL + 256 + self.num_sentinels

    def encode_plain(self, text: str | bytes) -> Int[np.ndarray, "length"]:
        raw = text.encode() if isinstance(text, str) else text
        return np.frombuffer(raw, np.uint8).astype(np.int32) + NUM_SPECIAL

    def word_starts(self, ids: Int[np.ndarray, "length"]) -> Int[np.ndarray, "words"]:
        spaces = np.array([byte + NUM_SPECIAL for byte in b" \t\n\r\f\v"])
        is_space = np.isin(ids, spaces)
        return np.flatnonzero(~is_space & np.append(True, is_space)[: len(ids)])

    def num_bytes(self, ids: Int[np.ndarray, "length"]) -> int:
        # Half a character counts as what it is.
        return int(self.is_text(ids).sum())

    def decode_pieces(self, ids: Int[np.ndarray, "length"]) -> str:
        return bytes((ids[ids >= NUM_SPECIAL] - NUM_SPECIAL).tolist()).decode(errors="replace")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model with sentinels after its pieces, as in T5 (32000 + 100).

    Args:
        path: of the `.model` file; its ids 0, 1 and 2 are padding, end of sequence and unknown.
        num_sentinels: ids added after the last piece.
        special: ids that differ from T5's, and added tokens.
        sentinels_in_model: whether they are the model's last pieces instead, as in mT5.

    Raises:
        UserError: where the file is not there, is no model, or has other special ids.
    """

    path: str
    num_sentinels: int = 100
    sentinels_in_model: bool = False
    special: SpecialTokens = SpecialTokens()

    def __post_init__(self) -> None:
        processor = self._processor
        ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
        has_own = (self.special.pad_id, self.special.eos_ids) != (PAD_ID, (EOS_ID,))
        is_special = [
            processor.is_control(number) or processor.is_unknown(number)
            for number in range(min(NUM_SPECIAL, processor.vocab_size()))
        ]
        if ids != (PAD_ID, EOS_ID, 2) and not (has_own and all(is_special)):
            raise UserError(
                f"{field_name(self, 'path')} {self.path} must have pad, eos and unk ids (0, 1, 2), "
                f"got {ids}; train it with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1, or name "
                "its own as SpecialTokens.pad_id and SpecialTokens.eos_ids"
            )

    @functools.cached_property
    def _processor(self) -> Any:
        import sentencepiece

        path = str(pathlib.Path(self.path).expanduser())
        if not pathlib.Path(path).is_file():
            raise UserError(f"SentencePieceVocabulary.path {self.path!r} is not there")
        try:
            return sentencepiece.SentencePieceProcessor(model_file=path)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"SentencePieceVocabulary.path {self.path} must be a SentencePiece model: {reason}"
            ) from error

    @functools.cached_property
    def _not_text(self) -> Int[np.ndarray, "_"]:
        processor = self._processor
        in_file = (processor.pad_id(), processor.eos_id(), processor.bos_id(), processor.unk_id())
        return np.append(super()._not_text, [i for i in in_file if i >= NUM_SPECIAL])

    @functools.cached_property
    def sentinel_stop(self) -> int:
        added = 0 if self.sentinels_in_model else self.num_sentinels
        return int(self._processor.vocab_size()) + added

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._processor.serialized_model_proto()).hexdigest()
        rest = ", sentinels_in_model=True" if self.sentinels_in_model else ""
        rest += self._special_print
        return f"SentencePieceVocabulary({digest[:16]}, num_sentinels={self.num_sentinels}{rest})"

    def encode_plain(self, text: str | bytes) -> Int[np.ndarray, "length"]:
        # Bytes that are no UTF-8 become replacement characters.
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._encode(plain, begins_word=True)

    def _encode(self, text: str, *, begins_word: bool) -> Int[np.ndarray, "length"]:
        if len(text) > PIECE_CHARACTERS:
            pieces = _pieces(text, begins_word=begins_word)
            return np.concatenate([self._encode(piece, begins_word=b) for piece, b in pieces])
        # SentencePiece puts a space before what it encodes.
        processor = self._processor if begins_word else self._without_space
        return np.asarray(processor.encode(text), np.int32)

    @functools.cached_property
    def _without_space(self) -> Any:
        """The same pieces, but no space is put before the text."""
        import sentencepiece

        model = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
        model.ParseFromString(self._processor.serialized_model_proto())
        model.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def encode_plain_behind(self, text: str) -> Int[np.ndarray, "length"]:
        # SentencePiece drops spaces at the beginning, and then puts one there.
        return self._encode(text, begins_word=text[:1].isspace())

    def decode_behind(self, ids: Int[np.ndarray, "length"]) -> str:
        text = self.decode_pieces(ids)
        return f" {text}" if text and len(self.word_starts(ids[:1])) else text

    def word_starts(self, ids: Int[np.ndarray, "length"]) -> Int[np.ndarray, "words"]:
        size = self._processor.vocab_size()
        pieces = [self._processor.id_to_piece(int(i)) if i < size else "" for i in ids]
        # SentencePiece writes a space as this character, and one before the text.
        return np.flatnonzero([piece.startswith("\u2581") for piece in pieces])

    def decode_pieces(self, ids: Int[np.ndarray, "length"]) -> str:
        return str(self._processor.decode(ids[ids >= NUM_SPECIAL].tolist()))


VOCABULARIES = {kind.__name__: kind for kind in (ByteVocabulary, SentencePieceVocabulary)}


def check_same(fingerprint: str | None, vocabulary: Vocabulary, owner: str) -> None:
    """Raises a UserError where `owner` was trained with a vocabulary that encodes otherwise.

    Args:
        fingerprint: of what it was trained with; None where that is not known.
    """
    if fingerprint is not None and fingerprint != vocabulary.fingerprint:
        raise UserError(
            f"{owner} was trained with the vocabulary {fingerprint}, got {vocabulary.fingerprint}; "
            "use the one that is its own"
        )


def from_description(described: Mapping[str, Any] | None, folder: pathlib.Path) -> Vocabulary:
    """Returns the vocabulary that `describe` was given.

    Args:
        folder: what a relative path begins at.

    Raises:
        UserError: where there is none, as where it was converted without; where it is not one that
            this version knows, or its file is not there.
    """
    if described is None:
        raise UserError(
            "the checkpoint does not say what its vocabulary is; convert it with "
            "convert.vocabulary, or name the run's --gin_file"
        )
    arguments = dict(described)
    kind: Any = choose("the vocabulary", arguments.pop("kind"), VOCABULARIES)
    if "special" in arguments:
        arguments["special"] = special_tokens_from(arguments["special"])
    if "path" in arguments:
        arguments["path"] = str(folder / pathlib.Path(arguments["path"]).expanduser())
    vocabulary: Vocabulary = kind(**arguments)
    return vocabulary

"""The vocabularies that gin files name: bytes, SentencePiece models, and tokenizer.json."""

import dataclasses
import functools
import hashlib
import importlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from t5lite.core.errors import UserError, choose, reason_of
from t5lite.core.fields import field_error, field_name
from t5lite.data.text.kept_texts import kept_pattern
from t5lite.data.text.special_tokens import SpecialTokens, special_tokens_from
from t5lite.data.text.tokenizers_vocabulary import TokenizersVocabulary, check_first_sentinel
from t5lite.data.text.vocabulary import EOS_ID, NUM_SPECIAL, PAD_ID, Vocabulary

# SentencePiece needs memory of many times the text's size, so longer texts are encoded in chunks.
CHUNK_CHARACTERS = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteVocabulary(Vocabulary):
    """UTF-8 bytes: byte b has the id b + 3, and sentinels follow.

    Args:
        num_sentinels: ids after the bytes.
        special: special ids other than T5's, and added tokens.
        parse_sentinels: whether `<extra_id_N>` in a text is a sentinel; False for literal text.

    Raises:
        UserError: if `num_sentinels` is out of range, or `parse_sentinels` is no bool.

    >>> vocabulary = ByteVocabulary()
    >>> vocabulary.size, vocabulary.encode("hi").tolist(), vocabulary.sentinel(0)
    (384, [107, 108], 383)
    >>> vocabulary.encode("h<extra_id_0>i").tolist()
    [107, 383, 108]
    >>> vocabulary.decode(np.array([107, 383, 108, 1, 107]))
    'h<extra_id_0>i'
    """

    num_sentinels: int = 125
    special: SpecialTokens = SpecialTokens()
    parse_sentinels: bool = True

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
        # Includes the bytes of incomplete characters.
        return int(self.is_text(ids).sum())

    def decode_pieces(self, ids: Int[np.ndarray, "length"]) -> str:
        return bytes((ids[ids >= NUM_SPECIAL] - NUM_SPECIAL).tolist()).decode(errors="replace")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model with sentinels after its pieces, as in T5 (32000 + 100).

    Args:
        path: of the `.model` file; its ids 0 and 1 are padding and end of sequence, and id 2 is the
            unknown piece or another special one.
        num_sentinels: ids after the last piece.
        sentinels_in_model: whether the model's last pieces are the sentinels instead, as in mT5.
        first_sentinel: the piece that is sentinel 0, from which the others count down, for pieces
            that the model's text does not use, such as Gemma's `<unused98>` to `<unused0>`.
        special: special ids other than T5's, and added tokens.
        parse_sentinels: whether `<extra_id_N>` in a text is a sentinel; False for literal text.

    Raises:
        UserError: if the file is missing, is not a model, or has other special ids; if
            `num_sentinels` or `first_sentinel` is out of range, or `parse_sentinels` is no bool.
    """

    path: str
    num_sentinels: int = 100
    sentinels_in_model: bool = False
    first_sentinel: int | None = None
    special: SpecialTokens = SpecialTokens()
    parse_sentinels: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        processor = self._processor
        ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
        has_own = (self.special.pad_id, self.special.eos_ids) != (PAD_ID, (EOS_ID,))
        is_special = [
            processor.is_control(number) or processor.is_unknown(number)
            for number in range(min(NUM_SPECIAL, processor.vocab_size()))
        ]
        if not (all(is_special) and (ids[:2] == (PAD_ID, EOS_ID) or has_own)):
            raise UserError(
                f"{field_name(self, 'path')} {self.path} must have pad, eos and unk ids (0, 1, 2), "
                f"or another special piece as 2, got {ids}; train it with t5lite vocab, which sets "
                "them, or name its own as SpecialTokens.pad_id and SpecialTokens.eos_ids"
            )
        check_first_sentinel(self, processor.vocab_size())
        if self.first_sentinel is not None and self.sentinels_in_model:
            raise field_error(self, "first_sentinel", "None with sentinels_in_model")

    @functools.cached_property
    def _processor(self) -> Any:
        owner = field_name(self, "path")
        if not pathlib.Path(os.path.expanduser(self.path)).is_file():
            raise UserError(f"{owner} {self.path!r} is not a file")
        return sentencepiece_processor(self.path, f"{owner} {self.path}")

    @functools.cached_property
    def _not_text(self) -> Int[np.ndarray, "_"]:
        processor = self._processor
        in_file = (processor.pad_id(), processor.eos_id(), processor.bos_id(), processor.unk_id())
        return np.append(super()._not_text, [i for i in in_file if i >= NUM_SPECIAL])

    @property
    def unknown_id(self) -> int:
        return int(self._processor.unk_id())

    @functools.cached_property
    def has_unknown_pieces(self) -> bool:
        # With byte fallback, every text has pieces.
        processor = self._processor
        return not any(processor.is_byte(number) for number in range(processor.vocab_size()))

    @functools.cached_property
    def sentinel_stop(self) -> int:
        if self.first_sentinel is not None:
            return self.first_sentinel + 1
        added = 0 if self.sentinels_in_model else self.num_sentinels
        return int(self._processor.vocab_size()) + added

    @functools.cached_property
    def piece_stop(self) -> int:
        own = self.num_sentinels if self.sentinels_in_model else 0
        return int(self._processor.vocab_size()) - own

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._processor.serialized_model_proto()).hexdigest()
        rest = ", sentinels_in_model=True" if self.sentinels_in_model else ""
        if self.first_sentinel is not None:
            rest += f", first_sentinel={self.first_sentinel}"
        rest += self._options_print
        return f"SentencePieceVocabulary({digest[:16]}, num_sentinels={self.num_sentinels}{rest})"

    def encode_plain(self, text: str | bytes) -> Int[np.ndarray, "length"]:
        # Bytes that are not UTF-8 become replacement characters.
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._encode_words(plain, begins_word=True)

    def _encode_words(self, text: str, *, begins_word: bool) -> Int[np.ndarray, "length"]:
        if len(text) > CHUNK_CHARACTERS:
            chunks = _chunks(text, begins_word=begins_word, drops_spaces=self._drops_spaces)
            return np.concatenate([self._encode_words(c, begins_word=b) for c, b in chunks])
        # SentencePiece prepends a space to the text that it encodes.
        processor = self._processor if begins_word else self._without_space
        return np.asarray(processor.encode(text), np.int32)

    @functools.cached_property
    def kept_texts(self) -> re.Pattern[str] | None:
        """Matches sentinels, added tokens, and the user-defined pieces of the model."""
        pieces = self.proto().pieces
        names = {p.piece.strip("\u2581") for p in pieces if p.type == p.USER_DEFINED}
        # A letter or a space that is a piece is text all the same.
        names = {name for name in names if len(name.strip()) > 1}
        sentinels = [] if self._marks is None else [self._marks.pattern]
        return kept_pattern(names, *sentinels)

    def proto(self) -> Any:
        """Returns the SentencePiece model as a protocol buffer."""
        model = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
        model.ParseFromString(self._processor.serialized_model_proto())
        return model

    @functools.cached_property
    def _drops_spaces(self) -> bool:
        """Whether white space around a text is removed, and a space put before it."""
        spec = self.proto().normalizer_spec
        return bool(spec.add_dummy_prefix or spec.remove_extra_whitespaces)

    @functools.cached_property
    def _without_space(self) -> Any:
        """The same model without the space that it prepends to texts."""
        import sentencepiece

        model = self.proto()
        model.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def encode_plain_after(self, text: str) -> Int[np.ndarray, "length"]:
        # SentencePiece strips leading spaces before it prepends one.
        return self._encode_words(text, begins_word=text[:1].isspace())

    def decode_after(self, ids: Int[np.ndarray, "length"]) -> str:
        text = self.decode_pieces(ids)
        is_dropped = text and self._drops_spaces and len(self.word_starts(ids[:1]))
        return f" {text}" if is_dropped else text

    def word_starts(self, ids: Int[np.ndarray, "length"]) -> Int[np.ndarray, "words"]:
        size = self._processor.vocab_size()
        pieces = [self._processor.id_to_piece(int(i)) if i < size else "" for i in ids]
        # SentencePiece writes a space as U+2581.
        return np.flatnonzero([piece.startswith("\u2581") for piece in pieces])

    def decode_pieces(self, ids: Int[np.ndarray, "length"]) -> str:
        return str(self._processor.decode(ids[ids >= NUM_SPECIAL].tolist()))


def sentencepiece_processor(path: str, owner: str) -> Any:
    """Returns SentencePiece's processor of a model file.

    Raises:
        UserError: naming `owner`, if it is no model, or its pieces are not UTF-8.
    """
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=os.path.expanduser(path))
        processor.id_to_piece(list(range(processor.vocab_size())))
    except (RuntimeError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{owner} must be a SentencePiece model: {reason_of(error)}") from error
    return processor


def _chunks(text: str, *, begins_word: bool, drops_spaces: bool) -> Iterator[tuple[str, bool]]:
    """Splits a long text, at white space if possible.

    Args:
        begins_word: whether the text begins a word.
        drops_spaces: whether a chunk is encoded with a space that it does not have; otherwise it
            begins with one, before which no piece continues.

    Yields:
        Pairs (chunk, whether it begins a word).
    """
    start = 0
    while len(text) - start > CHUNK_CHARACTERS:
        end = start + CHUNK_CHARACTERS
        if not drops_spaces:
            end = _word_end(text, start + 1, end)
            yield text[start:end], begins_word
            start = end
            continue
        space = max(text.rfind(character, start + 1, end) for character in " \n\t")
        end = space if space > 0 else end
        yield text[start:end], begins_word
        begins_word = space > 0
        start = end + begins_word
    yield text[start:], begins_word


def _word_end(text: str, start: int, end: int) -> int:
    """Returns the last position in a range at which a word ends before a space, or its end."""
    at = text.rfind(" ", start, end)
    while at > 0 and text[at - 1].isspace():
        at = text.rfind(" ", start, at)
    return at if at > 0 else end


VOCABULARIES = {
    kind.__name__: kind for kind in (ByteVocabulary, SentencePieceVocabulary, TokenizersVocabulary)
}


def check_same_vocabulary(fingerprint: str | None, vocabulary: Vocabulary, owner: str) -> None:
    """Raises a UserError if `owner` was trained with a vocabulary that encodes differently.

    Args:
        fingerprint: of the vocabulary of training; None if unknown.
    """
    if fingerprint is not None and fingerprint != vocabulary.fingerprint:
        raise UserError(
            f"{owner} was trained with the vocabulary {fingerprint}, got {vocabulary.fingerprint}; "
            "use the vocabulary of training"
        )


def vocabulary_from_description(
    described: Mapping[str, Any] | None, folder: pathlib.Path
) -> Vocabulary:
    """Returns the vocabulary from the value that `Vocabulary.describe` returned.

    Args:
        folder: of relative paths.

    Raises:
        UserError: for None, as in a checkpoint that was converted without a vocabulary; if this
            version does not know the vocabulary, or its file is missing.
    """
    if described is None:
        raise UserError(
            "the checkpoint does not name its vocabulary; convert it with convert.vocabulary, or "
            "pass the run's --gin_file"
        )
    arguments = dict(described)
    kind: Any = choose("the vocabulary", arguments.pop("kind"), VOCABULARIES)
    if "special" in arguments:
        arguments["special"] = special_tokens_from(arguments["special"])
    if "path" in arguments:
        arguments["path"] = str(folder / os.path.expanduser(arguments["path"]))
    vocabulary: Vocabulary = kind(**arguments)
    return vocabulary

"""`tokenizer.json` with a unigram model, rebuilt as a SentencePiece model with the same ids.

transformers 5 saves no `spiece.model`: this file is all there is of a T5 tokenizer. Every step in
it is translated or rejected by name.
"""

import base64
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, reason_of
from t5lite.interop.tokenizer_json_writer import (
    BYTE,
    COMPOSING,
    CONTROL,
    GUARD,
    NORMAL,
    REMOVING,
    SPACE,
    UNKNOWN,
    model_proto,
    plain_normalizer,
)

SENTINEL = re.compile(r"<extra_id_(0|[1-9][0-9]{0,8})>")
GLUED = (
    "text glued to a special token, as in '<extra_id_0>text', begins a word in the tokenizer of "
    "this folder and continues one in t5lite, as in T5's own training"
)
# The characters that `WhitespaceSplit` splits at.
WHITESPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_DAMAGE = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    RuntimeError,
    OverflowError,
)
_COLLAPSING = ((" {2,}", " "), (" {2,}", SPACE))
_STRIPPING = ((" $", ""), (r" \z", ""))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialNames:
    """The texts of the special tokens, by tokenizer_config.json."""

    pad: str = "<pad>"
    eos: str = "</s>"
    unk: str = "<unk>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RebuiltTokenizer:
    """A SentencePiece model and what belongs to it.

    Args:
        model: the serialized protocol buffer.
        num_sentinels: sentinels that follow its pieces.
        added_tokens: other tokens that are matched in the text, with their ids.
        remarks: what a user should know.
    """

    model: bytes
    num_sentinels: int
    added_tokens: Mapping[str, int]
    remarks: tuple[str, ...]


def rebuilt_tokenizer(
    content: Mapping[str, Any], names: SpecialNames, owner: str
) -> RebuiltTokenizer:
    """Returns the SentencePiece model of a tokenizer.json.

    Raises:
        UserError: if the file is damaged, its model is not a unigram model, or a step of it has no
            counterpart in SentencePiece.
    """
    try:
        return _rebuilt(content, names, owner)
    # SentencePiece raises RuntimeErrors; the others are those of damaged values.
    except _DAMAGE as error:
        raise UserError(
            f"{owner} must be a tokenizer.json of the tokenizers library, got one that is damaged "
            f"({type(error).__name__}: {reason_of(error)}); save the tokenizer again"
        ) from error


def _rebuilt(content: Mapping[str, Any], names: SpecialNames, owner: str) -> RebuiltTokenizer:
    model = content["model"]
    if model.get("type") != "Unigram":
        raise UserError(
            f"{owner} must hold a Unigram model, got {model.get('type')}; put the tokenizer's "
            "spiece.model beside it or name a vocabulary as convert.vocabulary"
        )
    vocab = [(str(piece), _score(score)) for piece, score in model["vocab"]]
    while vocab and vocab[-1][0].startswith(GUARD):
        vocab.pop()
    added = {str(token["content"]): _id(token["id"]) for token in content["added_tokens"]}
    _check_added(content["added_tokens"], vocab, owner)
    num_sentinels = _num_sentinels(vocab)
    unknown = _id(model["unk_id"])
    pieces = vocab[: len(vocab) - num_sentinels]
    normalization = _normalization(content, owner)
    is_special = {t["content"] for t in content["added_tokens"] if t.get("special")}
    proto = model_proto(b"")
    spec = proto.trainer_spec
    spec.model_type = 1
    spec.vocab_size = len(pieces)
    spec.byte_fallback = bool(model.get("byte_fallback"))
    spec.pad_piece = names.pad
    spec.eos_piece = names.eos
    spec.unk_piece = pieces[unknown][0]
    spec.unk_id = unknown
    for number, (piece, score) in enumerate(pieces):
        kind = CONTROL if piece in is_special | {names.pad, names.eos} else NORMAL
        kind = BYTE if spec.byte_fallback and _BYTE_PIECE.fullmatch(piece) else kind
        proto.pieces.add(piece=piece, score=score, type=UNKNOWN if number == unknown else kind)
    texts = [piece for piece, _ in pieces]
    ids = (texts.index(t) if t in texts else -1 for t in (names.pad, names.eos))
    spec.pad_id, spec.eos_id = ids
    spec.bos_id = -1
    proto.normalizer_spec.CopyFrom(normalization(proto).normalizer_spec)
    others = {
        text: number
        for text, number in added.items()
        if text not in (names.pad, names.eos, names.unk, spec.unk_piece)
        and not SENTINEL.fullmatch(text)
    }
    sentinels = {text: number for text, number in added.items() if SENTINEL.fullmatch(text)}
    if not num_sentinels and sentinels and min(sentinels.values()) >= len(pieces):
        num_sentinels = len(sentinels)
    _check_sentinels(sentinels, len(pieces), num_sentinels, owner)
    return RebuiltTokenizer(
        model=proto.SerializeToString(),
        num_sentinels=num_sentinels,
        added_tokens=others,
        remarks=tuple(_remarks(content)),
    )


def _id(value: Any) -> int:
    """Returns a token id.

    Raises:
        ValueError: if it is none.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"a token id must be a whole number >= 0, got {value!r:.80}")
    return value


def _score(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"the score of a piece must be a number, got {value!r:.80}")
    return float(value)


def _num_sentinels(vocab: Sequence[tuple[str, float]]) -> int:
    """Counts the sentinels at the end of a vocabulary, `<extra_id_0>` being the last one."""
    count = 0
    while count < len(vocab) and vocab[-1 - count][0] == f"<extra_id_{count}>":
        count += 1
    return count


def _check_sentinels(ids: Mapping[str, int], first: int, count: int, owner: str) -> None:
    for text, number in ids.items():
        wanted = first + count - 1 - int(text[len("<extra_id_") : -1])
        if count and number != wanted:
            raise UserError(
                f"{owner}: {text} must have the id {wanted}, as sentinels count down from the last "
                f"id, got {number}; name a vocabulary as convert.vocabulary"
            )


def _check_added(
    tokens: Sequence[Mapping[str, Any]], vocab: Sequence[tuple[str, float]], owner: str
) -> None:
    for token in tokens:
        text = token["content"]
        number = token["id"]
        if number < len(vocab) and vocab[number][0] != text:
            raise UserError(
                f"{owner}: the added token {text!r} has the id {number}, which the model gives to "
                f"{vocab[number][0]!r}; save the tokenizer again"
            )
        if token.get("single_word"):
            raise UserError(
                f"{owner}: single_word of the added token {text!r} is not supported; save the "
                "tokenizer without it"
            )


def _steps(step: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    """Yields a normalizer or pre-tokenizer, or the parts of a sequence of them."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step[inner]:
            yield from _steps(part, inner)
    else:
        yield step


def _normalization(content: Mapping[str, Any], owner: str) -> Callable[[Any], Any]:
    """Returns a function that gives a model the normalization of the file."""
    charsmaps: set[bytes] = set()
    replaced: list[tuple[str, str]] = []
    collapses = strips = splits = False
    prepends: bool | None = None
    for step in _steps(content.get("normalizer"), "normalizers"):
        match step:
            case {"type": "Precompiled", "precompiled_charsmap": charsmap}:
                charsmaps.add(base64.b64decode(charsmap))
            case {"type": "Replace", "pattern": {"Regex": str(pattern)}, "content": str(text)}:
                if (pattern, text) in _COLLAPSING:
                    collapses = True
                elif (pattern, text) in _STRIPPING:
                    strips = True
                elif text.endswith(GUARD) and (pair := COMPOSING.fullmatch(pattern)):
                    replaced.append(("".join(pair.groups()), text.removesuffix(GUARD)))
                elif text != GUARD and not (text == "" and REMOVING.fullmatch(pattern)):
                    raise _unknown(owner, f"Replace of {pattern!r} by {text!r}")
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(text)}:
                replaced.append((pattern, text))
            case {"type": "Strip"}:
                strips = strips or bool(step.get("strip_right"))
            case {"type": "Prepend", "prepend": prefix} if prefix == SPACE:
                prepends = True
            case _:
                raise _unknown(owner, f"normalizer {step['type']}")
    for step in _steps(content.get("pre_tokenizer"), "pretokenizers"):
        match step:
            case {"type": "WhitespaceSplit"}:
                splits = True
            case {"type": "Metaspace", "replacement": mark} if mark == SPACE:
                scheme = step.get("prepend_scheme", "always")
                prepends = step.get("add_prefix_space", True) and scheme != "never"
            case _:
                raise _unknown(owner, f"pre-tokenizer {step['type']}")
    if len(charsmaps) > 1 or (collapses != strips and not splits):
        raise _unknown(owner, "this combination of normalizers")
    if prepends is None:
        raise _unknown(owner, "a tokenizer without Metaspace")
    return functools.partial(
        _with_normalizer,
        charsmap=next(iter(charsmaps), b""),
        prepends=bool(prepends),
        collapses=collapses or splits,
        whitespace=WHITESPACE if splits else "",
        replaced=tuple(pair for pair in replaced if pair not in ((GUARD, ""), (" ", SPACE))),
        owner=owner,
    )


def _with_normalizer(
    proto: Any,
    *,
    charsmap: bytes,
    prepends: bool,
    collapses: bool,
    whitespace: str,
    replaced: Sequence[tuple[str, str]],
    owner: str,
) -> Any:
    import sentencepiece

    spec = proto.normalizer_spec
    spec.precompiled_charsmap = charsmap
    spec.add_dummy_prefix = prepends
    spec.remove_extra_whitespaces = collapses
    spec.escape_whitespaces = True
    normalize = plain_normalizer(proto) if charsmap else str
    if other := [pair for pair in replaced if normalize(pair[0]) != pair[1]]:
        raise _unknown(owner, f"Replace of {other[0][0]!r} by {other[0][1]!r}")
    # Characters that are split at there and would be pieces here.
    if kept := [character for character in whitespace if normalize(character) not in ("", " ")]:
        # Compiling a character map is logged otherwise.
        sentencepiece.SetMinLogLevel(2)
        rules = []
        if charsmap:
            rules = sentencepiece.SentencePieceNormalizer(
                model_proto=proto.SerializeToString()
            ).Decompile()
        rules = [rule for rule in rules if rule[0] not in kept]
        made = sentencepiece.SentencePieceNormalizer(
            norm_map=rules + [(character, " ") for character in kept]
        )
        changed = type(spec)()
        changed.ParseFromString(made.serialized_normalizer_spec())
        spec.precompiled_charsmap = changed.precompiled_charsmap
    return proto


def _unknown(owner: str, what: str) -> UserError:
    return UserError(
        f"{owner}: {what} has no counterpart in SentencePiece; put the tokenizer's spiece.model "
        "beside it or name a vocabulary as convert.vocabulary"
    )


def _remarks(content: Mapping[str, Any]) -> Iterator[str]:
    for step in _steps(content.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") == "always":
            yield GLUED

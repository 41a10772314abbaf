"""`tokenizer.json` of the `tokenizers` library for a SentencePiece vocabulary.

The written tokenizer gives the ids of `SentencePieceVocabulary`: byte fallback, user-defined
symbols, and no space before text that is glued to a sentinel.

NOTE: Hangul syllables that are decomposed into jamo, and letters that are decomposed into three
and more characters, are composed by SentencePiece and not by this tokenizer.
"""

import base64
import functools
import importlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from t5lite.core.errors import UserError
from t5lite.data.text.vocabularies import SentencePieceVocabulary

SPACE = "\u2581"
# A private character that no rule maps. It keeps `Precompiled`, which looks up grapheme clusters
# and returns the rule of their first characters alone, from losing combining marks.
GUARD = "\U0010fffd"
# The step that replaces a character before a mark, and the one that removes the mark.
COMPOSING = re.compile(r"(.)\(\?=(.)\)", re.DOTALL)
REMOVING = re.compile(rf"{GUARD}\[.*\]")
# Combining marks, and joiners: all that continue a cluster.
EXTENDING = r"\p{M}\x{200c}\x{200d}"
# `Precompiled` looks up clusters that are shorter.
CLUSTER_BYTES = 6
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE, WORD, CHAR = range(1, 5)

Json = dict[str, Any]


def model_proto(serialized: bytes) -> Any:
    """Returns the protocol buffer of a SentencePiece model."""
    proto = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    proto.ParseFromString(serialized)
    return proto


def tokenizer_json(vocabulary: SentencePieceVocabulary, first_ids: Sequence[int] = ()) -> Json:
    """Returns the content of `tokenizer.json`.

    Args:
        first_ids: the ids that texts begin with.

    Raises:
        UserError: if the vocabulary is not a unigram, character or BPE model.
    """
    proto = vocabulary.proto()
    pieces = [piece.piece for piece in proto.pieces]
    first = len(pieces)
    if not vocabulary.sentinels_in_model and vocabulary.first_sentinel is None:
        pieces += [f"<extra_id_{i}>" for i in reversed(range(vocabulary.num_sentinels))]
    # NOTE: the library numbers added tokens upwards from the size of the model, whatever their ids.
    pieces += [f"{GUARD}{number}" for number in range(len(pieces), _first_added(vocabulary))]
    has_inner_space = any(SPACE in piece[1:] for piece in pieces)
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    prepends = "first" if proto.normalizer_spec.add_dummy_prefix else "never"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary, proto, pieces),
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(proto)},
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": prepends,
            "split": not has_inner_space,
        },
        "post_processor": _post_processor(vocabulary, first_ids, pieces),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([strip] if prepends == "first" else []),
            ],
        },
        # Pieces with a guard are never in a text: they only have ids.
        "model": _model(proto, pieces[first:]),
    }


def _first_added(vocabulary: SentencePieceVocabulary) -> int:
    """Returns the first id after the sentinels that an added token has.

    Raises:
        UserError: if the ids from there are not consecutive.
    """
    ids = sorted(i for i in vocabulary.special.texts if i >= vocabulary.sentinel_stop)
    if ids and ids[-1] - ids[0] >= len(ids):
        raise UserError(
            "--to=huggingface: the ids of SpecialTokens.added_tokens must be consecutive for the "
            f"tokenizers library, got {ids[0]} to {ids[-1]} for {len(ids)} tokens"
        )
    return ids[0] if ids else 0


def _added_tokens(
    vocabulary: SentencePieceVocabulary, proto: Any, pieces: Sequence[str]
) -> list[Json]:
    special = {i: p.piece for i, p in enumerate(proto.pieces) if p.type in (UNKNOWN, CONTROL)}
    for index in range(vocabulary.num_sentinels):
        number = vocabulary.sentinel(index)
        is_piece = vocabulary.first_sentinel is not None
        special[number] = pieces[number] if is_piece else f"<extra_id_{index}>"
    for number in (vocabulary.special.pad_id, *vocabulary.stop_ids, *vocabulary.first_ids):
        if number < len(pieces):
            special.setdefault(number, pieces[number])
    plain = {**_symbols(proto), **vocabulary.special.texts}
    roles = (vocabulary.special.pad_id, vocabulary.special.bos_id, vocabulary.special.mask_id)
    return [
        {
            "id": number,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": number not in plain or number in (*roles, *vocabulary.stop_ids),
        }
        for number, text in sorted({**special, **plain}.items())
    ]


def _symbols(proto: Any) -> dict[int, str]:
    """Returns the user-defined pieces of a BPE model, which no pairs of its pieces may make up.

    Those with spaces are made up of them.
    """
    if proto.trainer_spec.model_type != BPE:
        return {}
    pieces = enumerate(proto.pieces)
    return {i: p.piece for i, p in pieces if p.type == USER_DEFINED and SPACE not in p.piece}


def _post_processor(
    vocabulary: SentencePieceVocabulary, first_ids: Sequence[int], pieces: Sequence[str]
) -> Json:
    names = {i: token_of(vocabulary, i, pieces) for i in (*first_ids, *vocabulary.last_input_ids)}
    begins = [{"SpecialToken": {"id": names[i], "type_id": 0}} for i in first_ids]
    ends = [{"SpecialToken": {"id": names[i], "type_id": 0}} for i in vocabulary.last_input_ids]
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    return {
        "type": "TemplateProcessing",
        "single": [*begins, one, *ends],
        "pair": [*begins, one, *ends, two, *ends],
        "special_tokens": {
            text: {"id": text, "ids": [i], "tokens": [text]} for i, text in names.items()
        },
    }


def token_of(vocabulary: SentencePieceVocabulary, number: int, pieces: Sequence[str]) -> str:
    """Returns the text of an id of a vocabulary, as the tokenizer names it.

    Raises:
        UserError: if it has none.
    """
    added = vocabulary.special.texts
    if number in added:
        return added[number]
    if number < len(pieces):
        return pieces[number]
    raise UserError(
        f"the id {number} of SpecialTokens must be a piece, a sentinel or an added token to be "
        "exported; add it to SpecialTokens.added_tokens"
    )


def _normalizers(proto: Any) -> list[Json]:
    """Returns SentencePiece's normalization as steps, without the space that begins a text."""
    spec = proto.normalizer_spec
    steps: list[Json] = []
    if spec.precompiled_charsmap:
        composed, guard = _compositions(proto)
        steps += _composing_steps(composed)
        encoded = base64.b64encode(spec.precompiled_charsmap).decode()
        # The second pass composes a character with a second mark.
        for _ in range(2):
            steps.append(_replace({"Regex": guard}, GUARD))
            steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
            steps.append(_replace({"String": GUARD}, ""))
    if spec.remove_extra_whitespaces:
        steps += [_replace({"Regex": " {2,}"}, " "), _replace({"Regex": r" \z"}, "")]
    return steps


def _composing_steps(composed: Sequence[tuple[str, str]]) -> Iterator[Json]:
    """Yields steps that replace each pair of a character and a mark by one character.

    NOTE: the library does not notice that a text begins where several characters at its beginning
    were replaced at once. The mark is removed in a step of its own.
    """
    marks = "".join(dict.fromkeys(_escaped(pair[1]) for pair, _ in composed))
    removal = _replace({"Regex": f"{GUARD}[{marks}]"}, "")
    made = set[str]()
    for pair, whole in composed:
        if pair[0] in made:
            yield removal
            made.clear()
        yield _replace({"Regex": f"{pair[0]}(?={pair[1]})"}, whole + GUARD)
        made.add(whole)
    if made:
        yield removal


def _replace(pattern: Json, content: str) -> Json:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _compositions(proto: Any) -> tuple[list[tuple[str, str]], str]:
    """Returns pairs to compose that are too long for `Precompiled`, and where it needs a guard.

    The second value is a regular expression of positions before a combining mark that does not
    compose with the character before it.
    """
    normalize = plain_normalizer(proto)
    too_long = []
    bases = dict[str, list[str]]()
    for base, mark in _canonical_pairs():
        whole = normalize(base + mark)
        if len(whole) == 1 and whole != mark:
            if len((base + mark).encode()) >= CLUSTER_BYTES:
                too_long.append((base + mark, whole))
            else:
                bases.setdefault(mark, []).append(base)
    if not bases:
        return too_long, rf"(?!\A)(?=[{EXTENDING}])"
    composing = "".join(_escaped(mark) for mark in bases)
    marks_of: dict[str, list[str]] = {}
    for mark, before in bases.items():
        marks_of.setdefault("".join(map(_escaped, sorted(before))), []).append(_escaped(mark))
    pairs = [f"(?<![{b}])(?=[{''.join(marks)}])" for b, marks in marks_of.items()]
    # NOTE: the library fails on a text in which something was inserted before its first character.
    positions = "|".join([f"(?=[{EXTENDING}&&[^{composing}]])", *pairs])
    return too_long, f"(?!\\A)(?:{positions})"


def _escaped(character: str) -> str:
    return f"\\x{{{ord(character):x}}}"


@functools.cache
def _canonical_pairs() -> tuple[tuple[str, str], ...]:
    return tuple(_pairs())


def _pairs() -> Iterator[tuple[str, str]]:
    """Yields each pair of characters that Unicode composes, Hangul's excepted."""
    for number in range(0x110000):
        parts = unicodedata.decomposition(chr(number)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            yield chr(int(parts[0], 16)), chr(int(parts[1], 16))
    for base in range(0xFF66, 0xFF9E):
        # Halfwidth katakana and its sound marks.
        yield from ((chr(base), mark) for mark in "\uff9e\uff9f")


def plain_normalizer(proto: Any) -> Any:
    """Returns a function that applies a model's character map, and nothing else, to a text."""
    import sentencepiece

    copy = model_proto(proto.SerializeToString())
    copy.normalizer_spec.add_dummy_prefix = False
    copy.normalizer_spec.remove_extra_whitespaces = False
    copy.normalizer_spec.escape_whitespaces = False
    return sentencepiece.SentencePieceNormalizer(model_proto=copy.SerializeToString()).normalize


def _model(proto: Any, others: Sequence[str]) -> Json:
    kind = proto.trainer_spec.model_type
    if kind == BPE:
        return _bpe(proto, others)
    if kind == WORD:
        raise UserError(
            "--to=huggingface: a SentencePiece model of type 'word' has no counterpart in the "
            "tokenizers library; train the vocabulary as 'unigram' or 'bpe'"
        )
    scores = {i: piece.score for i, piece in enumerate(proto.pieces)}
    likeliest = max((p.score for p in proto.pieces if p.type == NORMAL), default=0.0)
    for number, piece in enumerate(proto.pieces):
        if piece.type == USER_DEFINED:
            # As SentencePiece, which prefers such a symbol to any pieces of the same text.
            scores[number] = len(piece.piece.encode()) * likeliest - 0.1
    vocab = [[piece.piece, scores[i]] for i, piece in enumerate(proto.pieces)]
    return {
        "type": "Unigram",
        "unk_id": proto.trainer_spec.unk_id,
        "vocab": vocab + [[text, 0.0] for text in others],
        "byte_fallback": bool(proto.trainer_spec.byte_fallback),
    }


def _bpe(proto: Any, others: Sequence[str]) -> Json:
    """A BPE model. SentencePiece merges the pair whose piece has the highest score first."""
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    mergeable = {p.piece: p.score for p in proto.pieces if p.type in (NORMAL, USER_DEFINED)}
    merges = []
    for piece, score in mergeable.items():
        for cut in range(1, len(piece)):
            left = piece[:cut]
            right = piece[cut:]
            if left in mergeable and right in mergeable:
                merges.append((-score, vocab[left], vocab[right], [left, right]))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": proto.pieces[proto.trainer_spec.unk_id].piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": bool(proto.trainer_spec.byte_fallback),
        "ignore_merges": False,
        "vocab": {**vocab, **{text: len(vocab) + i for i, text in enumerate(others)}},
        "merges": [pair for *_, pair in sorted(merges)],
    }

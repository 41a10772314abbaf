"""The tokenizer files of a Hugging Face folder, and vocabularies."""

import dataclasses
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
)
from t5lite.interop.tensor_files import read_json
from t5lite.interop.tokenizer_json_reader import SENTINEL, SpecialNames, rebuilt_tokenizer
from t5lite.interop.tokenizer_json_writer import token_of, tokenizer_json

MODEL = "spiece.model"
CONFIG = "tokenizer_config.json"
TOKENIZER_JSON = "tokenizer.json"
ADDED_TOKENS = "added_tokens.json"
SPECIAL_MAP = "special_tokens_map.json"
# Sentinels that T5's tokenizers add if their files say nothing.
DEFAULT_SENTINELS = {"ByT5Tokenizer": 125}
_ROLES = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
T5_IDS = SpecialTokens()
_NOT_MATCHED = re.compile(r"</?s>|<pad>|<unk>")
# Rebuilt models are files until the process ends: vocabularies name a file.
_rebuilt_models: list[tempfile.TemporaryDirectory[str]] = []


def read_tokenizer(
    folder: pathlib.Path, special: SpecialTokens = T5_IDS
) -> tuple[Vocabulary | None, list[str]]:
    """Returns the vocabulary of a folder, None if it has none, and remarks.

    Args:
        special: the ids that config.json names.

    Raises:
        UserError: if a file is damaged, or the tokenizer does something that t5lite does not.
    """
    settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    kind = str(settings.get("tokenizer_class", ""))
    count = settings.get("extra_ids", DEFAULT_SENTINELS.get(kind, 100))
    if type(count) is not int or count < 0:
        raise UserError(f"{folder / CONFIG}: extra_ids must be a whole number >= 0, got {count!r}")
    added = _added_tokens(folder, settings)
    if kind.startswith("ByT5"):
        return _byte_vocabulary(folder, special, added, count)
    path = folder / MODEL
    if path.is_file():
        inside = _sentinels_inside(path)
        others = _check_sentinels(folder, added, _pieces_of(path), inside, count)
        return SentencePieceVocabulary(
            path=str(path),
            num_sentinels=inside or count,
            sentinels_in_model=bool(inside),
            special=dataclasses.replace(special, added_tokens=others),
        ), []
    if (folder / TOKENIZER_JSON).is_file():
        return _from_tokenizer_json(folder, settings, special, added)
    missing = f"{folder} has neither {MODEL} nor {TOKENIZER_JSON}"
    return None, [f"{missing}; bind convert.vocabulary if you need a vocabulary"]


def _byte_vocabulary(
    folder: pathlib.Path, special: SpecialTokens, added: Mapping[str, int], count: int
) -> tuple[Vocabulary, list[str]]:
    plain = ByteVocabulary(num_sentinels=count)
    sentinels = {t: i for t, i in added.items() if SENTINEL.fullmatch(t)}
    others = {t: i for t, i in added.items() if t not in sentinels and not _is_role(t, i)}
    if below := [t for t, i in others.items() if i < plain.sentinel_stop]:
        raise UserError(
            f"{folder}: the added token {below[0]!r} has the id {others[below[0]]}, which is a "
            "byte's or a sentinel's; ids of added tokens start after the sentinels"
        )
    remark = (
        f"sentinels count down from {plain.sentinel_stop - 1}, as T5's do; those of published ByT5 "
        "checkpoints count down from 258 in training, and up from 259 in Hugging Face's tokenizer"
    )
    special = dataclasses.replace(special, added_tokens=others)
    vocabulary = ByteVocabulary(num_sentinels=count, special=special)
    is_ours = all(i == plain.sentinel(int(t[10:-1])) for t, i in sentinels.items())
    return vocabulary, [] if sentinels and is_ours else [remark]


def _is_role(text: str, number: int) -> bool:
    return number < len(_ROLES) and bool(_NOT_MATCHED.fullmatch(text))


def _added_tokens(folder: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, int]:
    """Returns the added tokens of tokenizer_config.json and added_tokens.json."""
    listed = settings.get("added_tokens_decoder", {})
    path = folder / ADDED_TOKENS
    older = read_json(path) if path.is_file() else {}
    try:
        added = {str(text): int(number) for text, number in older.items()}
        for number, token in listed.items():
            text = token["content"] if isinstance(token, dict) else str(token)
            if isinstance(token, dict) and token.get("single_word"):
                raise UserError(
                    f"{folder / CONFIG}: single_word of the added token {text!r} is not supported; "
                    "save the tokenizer without it"
                )
            added[str(text)] = int(number)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: added tokens must be texts with their ids, got an entry that is not "
            f"({type(error).__name__}: {error})"
        ) from error
    return added


def _check_sentinels(
    folder: pathlib.Path, added: Mapping[str, int], pieces: list[str], inside: int, count: int
) -> dict[str, int]:
    """Returns the added tokens that are neither pieces nor sentinels.

    Raises:
        UserError: if a sentinel has another id than t5lite gives it, or an id is taken.
    """
    stop = len(pieces) if inside else len(pieces) + count
    others = {}
    for text, number in added.items():
        match = SENTINEL.fullmatch(text)
        index = int(match[1]) if match else -1
        if number < len(pieces) and pieces[number] in (text, f"\u2581{text}"):
            if not _NOT_MATCHED.fullmatch(text) and not match:
                others[text] = number
        elif match and index < (inside or count):
            if number != stop - 1 - index:
                raise UserError(
                    f"{folder}: {text} must have the id {stop - 1 - index}, as sentinels count "
                    f"down from the last id, got {number}; bind convert.vocabulary"
                )
        elif number < stop:
            raise UserError(
                f"{folder}: the added token {text!r} has the id {number}, which is a piece's or a "
                "sentinel's; save the tokenizer again"
            )
        else:
            others[text] = number
    return others


def _pieces_of(path: pathlib.Path) -> list[str]:
    model = _processor(path)
    return [model.id_to_piece(number) for number in range(model.vocab_size())]


def _processor(path: pathlib.Path) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise UserError(f"{path} must be a SentencePiece model: {error}") from error


def _sentinels_inside(path: pathlib.Path) -> int:
    """Counts the sentinels that are the last pieces of a SentencePiece model."""
    pieces = _pieces_of(path)
    count = 0
    while count < len(pieces) and pieces[-1 - count].endswith(f"<extra_id_{count}>"):
        count += 1
    return count


def _from_tokenizer_json(
    folder: pathlib.Path,
    settings: Mapping[str, Any],
    special: SpecialTokens,
    added: Mapping[str, int],
) -> tuple[Vocabulary, list[str]]:
    path = folder / TOKENIZER_JSON
    names = {role: _text_of(settings.get(role, usual)) for role, usual in _ROLES.items()}
    rebuilt = rebuilt_tokenizer(
        read_json(path),
        SpecialNames(pad=names["pad_token"], eos=names["eos_token"], unk=names["unk_token"]),
        str(path),
    )
    scratch = tempfile.TemporaryDirectory(prefix="t5lite-tokenizer-")
    _rebuilt_models.append(scratch)
    model = pathlib.Path(scratch.name) / MODEL
    model.write_bytes(rebuilt.model)
    inside = _sentinels_inside(model)
    tokens = {**rebuilt.added_tokens, **added}
    others = _check_sentinels(folder, tokens, _pieces_of(model), inside, rebuilt.num_sentinels)
    vocabulary = SentencePieceVocabulary(
        path=str(model),
        num_sentinels=inside or rebuilt.num_sentinels,
        sentinels_in_model=bool(inside),
        special=dataclasses.replace(special, added_tokens=others),
    )
    return vocabulary, [f"{MODEL} is rebuilt from {TOKENIZER_JSON}", *rebuilt.remarks]


def _text_of(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def write_tokenizer(
    vocabulary: Vocabulary, folder: pathlib.Path, *, max_input_tokens: int = 512
) -> None:
    """Writes the files from which `AutoTokenizer` makes a tokenizer with the vocabulary's ids.

    Raises:
        UserError: for a vocabulary that the tokenizers library has no model for.
    """
    count = vocabulary.num_sentinels
    sentinels = [f"<extra_id_{index}>" for index in range(count)]
    settings: dict[str, Any] = {"model_max_length": max_input_tokens, "extra_ids": count}
    if isinstance(vocabulary, ByteVocabulary):
        settings |= _ROLES | {"tokenizer_class": "ByT5Tokenizer"}
        # Added tokens would take ids upwards from the first; sentinels count down from the last.
        tokens = dict(enumerate(_ROLES.values()))
        tokens |= {vocabulary.sentinel(index): text for index, text in enumerate(sentinels)}
        special = set(tokens)
        tokens |= vocabulary.special.texts
        settings["added_tokens_decoder"] = {
            str(number): _added_token(text, special=number in special)
            for number, text in sorted(tokens.items())
        }
        settings["additional_special_tokens"] = sentinels[::-1]
    elif isinstance(vocabulary, SentencePieceVocabulary):
        _write_json(folder / TOKENIZER_JSON, tokenizer_json(vocabulary))
        shutil.copyfile(pathlib.Path(vocabulary.path).expanduser(), folder / MODEL)
        settings |= _role_texts(vocabulary)
        settings |= {
            # T5Tokenizer of transformers 5 ignores most of tokenizer.json.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "extra_ids": 0 if vocabulary.sentinels_in_model else count,
            "additional_special_tokens": sentinels,
        }
        if vocabulary.special.pairs:
            settings["added_tokens_decoder"] = {
                str(number): _added_token(text, special=False)
                for text, number in vocabulary.special.pairs
            }
    else:
        raise UserError(
            f"--to=huggingface: transformers has no tokenizer for a {type(vocabulary).__name__}"
        )
    _write_json(folder / CONFIG, settings)


def _role_texts(vocabulary: SentencePieceVocabulary) -> dict[str, str]:
    proto = vocabulary.proto()
    pieces = [piece.piece for piece in proto.pieces]
    return {
        "pad_token": token_of(vocabulary, vocabulary.special.pad_id, pieces),
        "eos_token": token_of(vocabulary, vocabulary.eos_id, pieces),
        "unk_token": pieces[proto.trainer_spec.unk_id],
    }


def _added_token(text: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": text, "special": special, **flags}


def _write_json(path: pathlib.Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

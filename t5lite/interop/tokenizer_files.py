"""The tokenizer files of a Hugging Face folder, and vocabularies."""

import atexit
import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError, reason_of
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    TokenizersVocabulary,
    Vocabulary,
    sentencepiece_processor,
)
from t5lite.data.text.vocabulary import UNKNOWN_ID
from t5lite.interop.tensor_files import read_json
from t5lite.interop.tokenizer_json_reader import (
    GLUED,
    SENTINEL,
    SpecialNames,
    rebuilt_tokenizer,
)
from t5lite.interop.tokenizer_json_writer import token_of, tokenizer_json
from t5lite.interop.tokenizer_library import (
    LIBRARY_MODELS,
    TokenizerFolder,
    gemma_vocabulary,
    library_settings,
    library_vocabulary,
)

MODEL = "spiece.model"
# Of Gemma, whose special tokens are not T5's.
GEMMA_MODEL = "tokenizer.model"
CONFIG = "tokenizer_config.json"
TOKENIZER_JSON = "tokenizer.json"
ADDED_TOKENS = "added_tokens.json"
SPECIAL_MAP = "special_tokens_map.json"
# Sentinels that T5's tokenizers add if their files say nothing.
DEFAULT_SENTINELS = {"ByT5Tokenizer": 125}
_ROLES = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_T5_SPECIAL = SpecialTokens()
_FAST: dict[str, Any] = {
    # The classes that T5's and others name in transformers 5 ignore most of tokenizer.json.
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
}
_NOT_MATCHED = re.compile(r"</?s>|<pad>|<unk>")
# Rebuilt models are files until the process ends: vocabularies name a file.
_rebuilt_models = contextlib.ExitStack()
atexit.register(_rebuilt_models.close)


def read_tokenizer(
    folder: pathlib.Path, special: SpecialTokens = _T5_SPECIAL, *, has_encoder: bool = True
) -> tuple[Vocabulary | None, list[str]]:
    """Returns the vocabulary of a folder, None if it has none, and remarks.

    Args:
        special: the ids that config.json names.
        has_encoder: whether the model has one, whose inputs may begin with a token of their own.

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
        vocabulary = SentencePieceVocabulary(
            path=str(path),
            num_sentinels=inside or count,
            sentinels_in_model=bool(inside),
            special=dataclasses.replace(special, added_tokens=others),
        )
        return vocabulary, _remarks_on_glued_text(folder, settings)
    json_path = folder / TOKENIZER_JSON
    content = read_json(json_path) if json_path.is_file() else {}
    roles = read_json(folder / SPECIAL_MAP) if (folder / SPECIAL_MAP).is_file() else {}
    files = TokenizerFolder(
        path=folder,
        content=content,
        settings={**roles, **settings},
        added=added,
        special=special,
        has_encoder=has_encoder,
    )
    if (folder / GEMMA_MODEL).is_file():
        return gemma_vocabulary(files, folder / GEMMA_MODEL)
    if _model_type(content) in LIBRARY_MODELS:
        return library_vocabulary(files)
    if content:
        return _from_tokenizer_json(folder, settings, special, added)
    missing = f"{folder} has neither {MODEL}, {GEMMA_MODEL} nor {TOKENIZER_JSON}"
    return None, [f"{missing}; bind convert.vocabulary if you need a vocabulary"]


def _model_type(content: Mapping[str, Any]) -> str | None:
    model = content.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    return kind if isinstance(kind, str) else None


def _remarks_on_glued_text(folder: pathlib.Path, settings: Mapping[str, Any]) -> list[str]:
    """Returns remarks on text beside special tokens, which a folder's tokenizer encodes otherwise.

    `T5Tokenizer` of transformers begins a word after a special token, unless `legacy` is false;
    other classes do what tokenizer.json says.
    """
    if not str(settings.get("tokenizer_class", "T5Tokenizer")).startswith(("T5", "MT5")):
        return []
    if settings.get("legacy") is not False:
        return [GLUED]
    listed = settings.get("added_tokens_decoder") or {}
    stripping = [t["content"] for t in listed.values() if isinstance(t, dict) and t.get("rstrip")]
    if not stripping:
        return []
    remark = (
        f"a space after {stripping[0]} is dropped by the tokenizer of this folder (rstrip), so the "
        "text after it continues a word; in t5lite it begins one"
    )
    return [remark]


def _byte_vocabulary(
    folder: pathlib.Path, special: SpecialTokens, added: Mapping[str, int], count: int
) -> tuple[Vocabulary, list[str]]:
    plain = ByteVocabulary(num_sentinels=count)
    indices = {t: int(match[1]) for t in added if (match := SENTINEL.fullmatch(t))}
    sentinels = {t: added[t] for t, index in indices.items() if index < count}
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
    is_ours = all(i == plain.sentinel(indices[t]) for t, i in sentinels.items())
    return vocabulary, [] if sentinels and is_ours else [remark]


def _is_role(text: str, number: int) -> bool:
    return number < len(_ROLES) and bool(_NOT_MATCHED.fullmatch(text))


def _added_tokens(folder: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, int]:
    """Returns the added tokens of tokenizer_config.json and added_tokens.json."""
    listed = settings.get("added_tokens_decoder") or {}
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
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{folder}: added tokens must be texts with their ids, got an entry that is not "
            f"({type(error).__name__}: {reason_of(error)})"
        ) from error
    if negative := [text for text, number in added.items() if number < 0]:
        raise UserError(
            f"{folder}: the added token {negative[0]!r:.80} must have an id >= 0, got "
            f"{added[negative[0]]}"
        )
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
    model = sentencepiece_processor(str(path), str(path))
    return [model.id_to_piece(number) for number in range(model.vocab_size())]


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
    names = {role: _text_of(settings, role, str(folder / CONFIG)) for role in _ROLES}
    rebuilt = rebuilt_tokenizer(
        read_json(path),
        SpecialNames(pad=names["pad_token"], eos=names["eos_token"], unk=names["unk_token"]),
        str(path),
    )
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="t5lite-tokenizer-"))
        model = pathlib.Path(scratch) / MODEL
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
        _rebuilt_models.push(stack.pop_all())
    return vocabulary, [f"{MODEL} is rebuilt from {TOKENIZER_JSON}", *rebuilt.remarks]


def _text_of(settings: Mapping[str, Any], role: str, owner: str) -> str:
    token = settings.get(role)
    text = token.get("content") if isinstance(token, dict) else token
    if text is None and not isinstance(token, dict):
        return _ROLES[role]
    if not isinstance(text, str):
        raise UserError(f"{owner}: {role} must be a text, got {token!r:.80}")
    return text


def write_tokenizer(
    vocabulary: Vocabulary,
    folder: pathlib.Path,
    *,
    max_input_tokens: int = 512,
    start_token: int | None = None,
    bos_token: int | None = None,
    fills_masks: bool = False,
) -> None:
    """Writes the files from which `AutoTokenizer` makes a tokenizer with the vocabulary's ids.

    Args:
        max_input_tokens: `model_max_length` of the tokenizer.
        start_token: the token that texts begin with for a model without an encoder.
        bos_token: the token that is named so if the vocabulary has no other, as programs begin the
            targets of T5Gemma with it.
        fills_masks: whether the model restores masked tokens: then sentinel 0 is named as the mask
            of a vocabulary that has no other.

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
        if fills_masks and vocabulary.mask_id is not None:
            settings["mask_token"] = tokens[vocabulary.mask_id]
    elif isinstance(vocabulary, SentencePieceVocabulary):
        first = vocabulary.first_input_ids if start_token is None else (start_token,)
        _write_json(folder / TOKENIZER_JSON, tokenizer_json(vocabulary, first))
        # T5's tokenizers in transformers would give Gemma's model T5's special tokens.
        name = MODEL if vocabulary.unknown_id == UNKNOWN_ID else GEMMA_MODEL
        shutil.copyfile(pathlib.Path(vocabulary.path).expanduser(), folder / name)
        settings |= _role_texts(vocabulary, bos_token, fills_masks=fills_masks) | _FAST
        is_after = not vocabulary.sentinels_in_model and vocabulary.first_sentinel is None
        settings["extra_ids"] = count if is_after else 0
        if vocabulary.first_sentinel is None:
            settings["additional_special_tokens"] = sentinels
        if vocabulary.special.pairs:
            settings["added_tokens_decoder"] = {
                str(number): _added_token(text, special=False)
                for text, number in vocabulary.special.pairs
            }
    elif isinstance(vocabulary, TokenizersVocabulary):
        (folder / TOKENIZER_JSON).write_text(vocabulary.tokenizer_json(), encoding="utf-8")
        settings = {"model_max_length": max_input_tokens, **library_settings(vocabulary), **_FAST}
    else:
        raise UserError(
            f"--to=huggingface: transformers has no tokenizer for a {type(vocabulary).__name__}"
        )
    _write_json(folder / CONFIG, settings)


def _role_texts(
    vocabulary: SentencePieceVocabulary, bos_token: int | None, *, fills_masks: bool
) -> dict[str, str]:
    special = vocabulary.special
    pieces = [piece.piece for piece in vocabulary.proto().pieces]
    if bos_token is not None and bos_token >= len(pieces):
        bos_token = None
    roles: dict[str, int | None] = {
        "pad": special.pad_id,
        "eos": vocabulary.eos_id,
        "unk": vocabulary.unknown_id,
        "bos": bos_token if special.bos_id is None else special.bos_id,
        "mask": special.mask_id,
    }
    texts = {
        f"{name}_token": token_of(vocabulary, number, pieces)
        for name, number in roles.items()
        if number is not None
    }
    if fills_masks and special.mask_id is None and (mask := vocabulary.mask_id) is not None:
        is_piece = vocabulary.first_sentinel is not None
        texts["mask_token"] = pieces[mask] if is_piece else "<extra_id_0>"
    return texts


def _added_token(text: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": text, "special": special, **flags}


def _write_json(path: pathlib.Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

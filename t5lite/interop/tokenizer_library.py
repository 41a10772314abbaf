"""Folders whose vocabulary is a tokenizer.json for the `tokenizers` package, or Gemma's model."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.tokenizers_vocabulary import TokenizersVocabulary
from t5lite.data.text.vocabularies import SentencePieceVocabulary, sentencepiece_processor
from t5lite.interop.tokenizer_json_writer import USER_DEFINED, model_proto
from t5lite.interop.tokenizer_roles import frame_of, role_texts, sentinels_of, special_fields

_GEMMA_MASK = "<mask>"
LIBRARY_MODELS = ("BPE", "WordPiece")
# Fields of tokenizer_config.json by which transformers' BertTokenizer makes its normalizer, and
# those of the normalizer in tokenizer.json.
_BERT_FIELDS = {
    "do_lower_case": "lowercase",
    "tokenize_chinese_chars": "handle_chinese_chars",
    "strip_accents": "strip_accents",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFolder:
    """The tokenizer files of a folder.

    Args:
        path: of the folder.
        content: tokenizer.json, or {} if there is none.
        settings: tokenizer_config.json over special_tokens_map.json.
        added: the added tokens that files besides tokenizer.json list.
        special: the ids that config.json names.
        has_encoder: whether the model has one.
    """

    path: pathlib.Path
    content: Mapping[str, Any]
    settings: Mapping[str, Any]
    added: Mapping[str, int]
    special: SpecialTokens
    has_encoder: bool


def library_vocabulary(folder: TokenizerFolder) -> tuple[TokenizersVocabulary, list[str]]:
    """Returns the vocabulary of a tokenizer.json with a BPE or WordPiece model, and remarks.

    Raises:
        UserError: if the file is damaged, other files of the folder contradict it, or it does
            something that t5lite does not.
    """
    path = folder.path / "tokenizer.json"
    _check_normalizer(folder)
    plain = TokenizersVocabulary(path=str(path), special=_ANY_IDS)
    texts = plain.texts
    ids = {text: number for number, text in texts.items()}
    for text, number in folder.added.items():
        if ids.get(text) != number:
            raise UserError(
                f"{folder.path}: the added token {text!r} has the id {number} in other files and "
                f"{ids.get(text, 'none')} in tokenizer.json; load and save the tokenizer with "
                "transformers"
            )
    special, remarks = _special_tokens(folder, ids)
    first, count = sentinels_of(plain.added_texts)
    vocabulary = TokenizersVocabulary(
        path=str(path), num_sentinels=count, first_sentinel=first, special=special
    )
    return vocabulary, [*remarks, *_sentinel_remarks(texts, first, count)]


def gemma_vocabulary(
    folder: TokenizerFolder, path: pathlib.Path
) -> tuple[SentencePieceVocabulary, list[str]]:
    """Returns the vocabulary of a SentencePiece model that is no T5's, and remarks.

    Raises:
        UserError: if it is no model, or other files of the folder contradict it.
    """
    proto = model_proto(sentencepiece_processor(str(path), str(path)).serialized_model_proto())
    texts = {number: piece.piece for number, piece in enumerate(proto.pieces)}
    ids = {text: number for number, text in texts.items()}
    others = {}
    for text, number in folder.added.items():
        if number < len(texts) and texts[number] != text:
            raise UserError(
                f"{folder.path}: the added token {text!r} has the id {number}, which is "
                f"{texts[number]!r} in {path.name}; load and save the tokenizer with transformers"
            )
        # SentencePiece matches its user-defined pieces by itself.
        if number >= len(texts) or proto.pieces[number].type != USER_DEFINED:
            others[text] = number
    special, remarks = _special_tokens(folder, {**ids, **others})
    first, count = sentinels_of(texts)
    vocabulary = SentencePieceVocabulary(
        path=str(path),
        num_sentinels=count,
        first_sentinel=first,
        special=dataclasses.replace(special, added_tokens=others),
    )
    return vocabulary, [*remarks, *_sentinel_remarks(texts, first, count)]


# For reading the texts of a file whose special ids are not known yet.
_ANY_IDS = SpecialTokens(eos_ids=(0,))


def _special_tokens(
    folder: TokenizerFolder, ids: Mapping[str, int]
) -> tuple[SpecialTokens, list[str]]:
    owner = f"{folder.path}/tokenizer_config.json"
    texts = role_texts(folder.settings, owner)
    if str(folder.settings.get("tokenizer_class")).startswith("Gemma") and _GEMMA_MASK in ids:
        # The default of the class.
        texts.setdefault("mask_token", _GEMMA_MASK)
    frame = frame_of(folder.content, folder.settings, owner)
    fields = special_fields(frame, texts, ids, owner, has_encoder=folder.has_encoder)
    end = texts.get("eos_token", texts.get("sep_token"))
    if end is None:
        raise UserError(f"{owner} must name an eos_token or a sep_token, got neither")
    remarks = []
    ends = folder.special.eos_ids
    if ids[end] not in ends:
        if ends != SpecialTokens().eos_ids:
            remarks.append(
                f"sequences end with {end} ({ids[end]}), as {owner} says, and not with "
                f"{list(ends)} of config.json"
            )
        ends = (ids[end],)
    pad = texts.get("pad_token", end)
    return (
        dataclasses.replace(folder.special, pad_id=ids[pad], eos_ids=ends, **fields),
        remarks,
    )


def _sentinel_remarks(texts: Mapping[int, str], first: int | None, count: int) -> list[str]:
    if first is None or texts[first] == "<extra_id_0>":
        return []
    return [
        f"sentinels 0 to {count - 1} are the tokens {texts[first]} to {texts[first - count + 1]}"
    ]


def _check_normalizer(folder: TokenizerFolder) -> None:
    """Raises a UserError if transformers would normalise text otherwise than the file says."""
    normalizer = folder.content.get("normalizer")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        return
    for field, name in _BERT_FIELDS.items():
        if field in folder.settings and folder.settings[field] != normalizer.get(name):
            raise UserError(
                f"{folder.path}: {field} of tokenizer_config.json must be {name} of tokenizer.json "
                f"({normalizer.get(name)!r}), got {folder.settings[field]!r}; load and save the "
                "tokenizer with transformers"
            )


def library_settings(vocabulary: TokenizersVocabulary) -> dict[str, Any]:
    """Returns the roles of special tokens for the tokenizer_config.json of a vocabulary."""
    special = vocabulary.special
    texts = vocabulary.texts
    settings = {"pad_token": texts[special.pad_id], "eos_token": texts[vocabulary.eos_id]}
    if vocabulary.has_unknown_pieces:
        settings["unk_token"] = texts[vocabulary.unknown_id]
    if special.bos_id is not None:
        settings["bos_token"] = texts[special.bos_id]
    if special.mask_id is not None:
        settings["mask_token"] = texts[special.mask_id]
        settings["sep_token"] = settings["eos_token"]
        if "bos_token" in settings:
            settings["cls_token"] = settings["bos_token"]
    return settings

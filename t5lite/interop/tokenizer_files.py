"""Hugging Face's files of a tokenizer, and our vocabularies."""

import json
import pathlib
import shutil
from typing import Any

from t5lite.core.errors import UserError
from t5lite.data.text.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
)
from t5lite.interop.tensor_files import read_json

MODEL, CONFIG = "spiece.model", "tokenizer_config.json"
# Ids that T5's tokenizers add where their files say nothing.
DEFAULT_SENTINELS = {"ByT5Tokenizer": 125}
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def read(folder: pathlib.Path) -> tuple[Vocabulary | None, list[str]]:
    """Returns the vocabulary that a folder holds, if it holds one, and remarks."""
    settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    kind = str(settings.get("tokenizer_class", ""))
    added = settings.get("extra_ids", DEFAULT_SENTINELS.get(kind, 100))
    if type(added) is not int or added < 0:
        raise UserError(f"{folder / CONFIG}: extra_ids must be a whole number >= 0, got {added!r}")
    if kind.startswith("ByT5"):
        remark = (
            "sentinels count down from 383, as T5's do; those of published ByT5 checkpoints count "
            "down from 258 in training, and up from 259 in Hugging Face's tokenizer"
        )
        return ByteVocabulary(num_sentinels=added), [remark]
    path = folder / MODEL
    if not path.is_file():
        return None, [f"{folder} has no {MODEL}: name a vocabulary yourself where one is needed"]
    inside = _sentinels_inside(path)
    if inside:
        return SentencePieceVocabulary(
            path=str(path), num_sentinels=inside, sentinels_in_model=True
        ), []
    return SentencePieceVocabulary(path=str(path), num_sentinels=added), []


def _sentinels_inside(path: pathlib.Path) -> int:
    """Counts the sentinels that are the last pieces of a SentencePiece model."""
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise UserError(f"{path} must be a SentencePiece model: {error}") from error
    size, count = model.vocab_size(), 0
    while count < size and model.id_to_piece(size - 1 - count).endswith(f"<extra_id_{count}>"):
        count += 1
    return count


def write(vocabulary: Vocabulary, folder: pathlib.Path) -> None:
    """Writes the files from which `AutoTokenizer` makes the same tokenizer."""
    count = vocabulary.num_sentinels
    sentinels = [f"<extra_id_{index}>" for index in range(count)]
    settings: dict[str, Any] = {**_SPECIAL}
    if isinstance(vocabulary, ByteVocabulary):
        # Tokens that are added take ids upwards from the first, ours count down from the last.
        settings |= {"tokenizer_class": "ByT5Tokenizer", "extra_ids": count}
        tokens = dict(enumerate(_SPECIAL.values()))
        tokens |= {vocabulary.sentinel(i): t for i, t in enumerate(sentinels)}
        settings["added_tokens_decoder"] = {
            str(i): {
                "content": t,
                "special": True,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
            }
            for i, t in sorted(tokens.items())
        }
        settings["additional_special_tokens"] = sentinels[::-1]
    elif isinstance(vocabulary, SentencePieceVocabulary):
        shutil.copyfile(pathlib.Path(vocabulary.path).expanduser(), folder / MODEL)
        extra = 0 if vocabulary.sentinels_in_model else count
        settings |= {"tokenizer_class": "T5Tokenizer", "extra_ids": extra}
        settings["additional_special_tokens"] = sentinels if extra else []
    else:
        raise UserError(f"no tokenizer of Hugging Face is a {type(vocabulary).__name__}")
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")

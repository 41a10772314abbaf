"""Loads the roots of a command from its gin flags, wherever the run's directory has moved.

`train` keeps a copy of the vocabulary in MODEL_DIR, and so does `convert`. The gin files that they
write there name the copy. Those of version 0.1.0 name the original: the copy beside them is used
if that is missing. Checkpoints compare fingerprints, so another vocabulary is never used silently.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from t5lite import configurables
from t5lite.cli.stand_in_vocabulary import StandInVocabulary
from t5lite.core.errors import UserError
from t5lite.core.run_directory import locked
from t5lite.data.text.tokenizers_vocabulary import TokenizersVocabulary
from t5lite.data.text.vocabularies import SentencePieceVocabulary, vocabulary_from_description
from t5lite.data.text.vocabulary import Vocabulary
from t5lite.gin_text import OWN_FOLDER
from t5lite.training.writers.json_lines import RUN_CONFIG_FILE

# Of a SentencePiece model or a tokenizer.json.
VOCABULARY_COPY = "vocabulary.model"
# What a gin file beside the copy binds.
COPY_BESIDE = f"{OWN_FOLDER}/{VOCABULARY_COPY}"
# The gin files that are written beside a copy.
MODEL_FILE = "model.gin"
_BESIDE_COPY = (RUN_CONFIG_FILE, MODEL_FILE)
_WITH_FILE = (SentencePieceVocabulary, TokenizersVocabulary)


def load_roots(
    flags: Any,
    bindings: Sequence[str],
    *roots: str,
    needs_vocabulary: bool = True,
) -> tuple[Any, ...]:
    """Returns the roots of a command.

    Args:
        needs_vocabulary: whether the command encodes text; otherwise a missing vocabulary is
            replaced by one without pieces.

    Raises:
        UserError: as `configurables.load` does.
    """
    files = map(pathlib.Path, flags.gin_file)
    folders = [path.parent for path in files if path.name in _BESIDE_COPY]
    substitutes = {
        kind.__name__: _vocabulary_builder(kind, folders, needs_vocabulary=needs_vocabulary)
        for kind in _WITH_FILE
    }
    return configurables.load(
        flags.gin_file,
        bindings,
        flags.gin_search_paths,
        *roots,
        substitutes=substitutes,
    )


def _vocabulary_builder(
    kind: Callable[..., Vocabulary], folders: Iterable[pathlib.Path], *, needs_vocabulary: bool
) -> Callable[..., Vocabulary]:
    def build(*, path: str, **others: Any) -> Vocabulary:
        if not is_file(path):
            for folder in folders:
                if (folder / VOCABULARY_COPY).is_file():
                    path = str(folder / VOCABULARY_COPY)
                    break
            else:
                if not needs_vocabulary:
                    return StandInVocabulary(path=path, **others)
        return kind(path=path, **others)

    return build


def is_file(path: str) -> bool:
    """Whether a path, with `~` for the home directory, is a file."""
    try:
        return pathlib.Path(path).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def keep_vocabulary(vocabulary: Vocabulary, model_dir: pathlib.Path) -> None:
    """Copies the file of a vocabulary into MODEL_DIR, unless MODEL_DIR has a copy.

    Raises:
        UserError: if MODEL_DIR has another vocabulary, to which its checkpoints may belong.
        Unavailable: if it has none and another process trains in it.
    """
    if not isinstance(vocabulary, _WITH_FILE):
        return
    copy = model_dir / VOCABULARY_COPY
    if not copy.exists():
        with locked(model_dir):
            # Another process may have copied its own meanwhile.
            if not copy.exists():
                partial = copy.with_suffix(".partial")
                shutil.copyfile(pathlib.Path(vocabulary.path).expanduser(), partial)
                partial.replace(copy)
    if dataclasses.replace(vocabulary, path=str(copy)).fingerprint != vocabulary.fingerprint:
        raise UserError(
            f"{copy} must be the run's vocabulary {vocabulary.path}, got another one; use another "
            "MODEL_DIR, or delete it if the directory has no checkpoints"
        )


def run_config(vocabulary: Vocabulary) -> str:
    """Returns the `config.gin` of the run that was loaded; it names the copy of the vocabulary."""
    if isinstance(vocabulary, _WITH_FILE):
        return configurables.resolved_text({vocabulary.path: COPY_BESIDE})
    return configurables.resolved_text()


def saved_vocabulary(about: Mapping[str, Any], model_dir: pathlib.Path) -> Vocabulary:
    """Returns the vocabulary that a checkpoint describes, from the copy if MODEL_DIR has one.

    Raises:
        UserError: if there is neither a copy nor its file.
    """
    described = about["vocabulary"] and dict(about["vocabulary"])
    if described and "path" in described and (model_dir / VOCABULARY_COPY).is_file():
        described["path"] = VOCABULARY_COPY
    return vocabulary_from_description(described, model_dir)

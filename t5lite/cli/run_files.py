"""Loads the roots of a command from its gin flags, wherever the run's directory has moved.

`train` keeps a copy of the vocabulary in MODEL_DIR. If the file that a configuration names is
missing, the copy beside a gin file, such as the `config.gin` of a MODEL_DIR, is used instead.
Checkpoints compare fingerprints, so another vocabulary is never used silently.
"""

import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from t5lite import configurables
from t5lite.cli.stand_in_vocabulary import StandInVocabulary
from t5lite.data.text.vocabularies import SentencePieceVocabulary, vocabulary_from_description
from t5lite.data.text.vocabulary import Vocabulary

VOCABULARY_COPY = "vocabulary.model"


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
    folders = [pathlib.Path(path).parent for path in flags.gin_file]
    substitute = _vocabulary_builder(folders, needs_vocabulary=needs_vocabulary)
    return configurables.load(
        flags.gin_file,
        bindings,
        flags.gin_search_paths,
        *roots,
        substitutes={"SentencePieceVocabulary": substitute},
    )


def _vocabulary_builder(
    folders: Iterable[pathlib.Path], *, needs_vocabulary: bool
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
        return SentencePieceVocabulary(path=path, **others)

    return build


def is_file(path: str) -> bool:
    """Whether a path, with `~` for the home directory, is a file."""
    try:
        return pathlib.Path(path).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def keep_vocabulary(vocabulary: Vocabulary, model_dir: pathlib.Path) -> None:
    """Copies the file of a vocabulary into MODEL_DIR, unless MODEL_DIR has a copy."""
    copy = model_dir / VOCABULARY_COPY
    if isinstance(vocabulary, SentencePieceVocabulary) and not copy.exists():
        partial = copy.with_suffix(".partial")
        shutil.copyfile(pathlib.Path(vocabulary.path).expanduser(), partial)
        partial.replace(copy)


def saved_vocabulary(about: Mapping[str, Any], model_dir: pathlib.Path) -> Vocabulary:
    """Returns the vocabulary that a checkpoint describes, from the copy if its file has moved.

    Raises:
        UserError: if neither is a file.
    """
    described = about["vocabulary"] and dict(about["vocabulary"])
    has_moved = (
        described and "path" in described and not is_file(str(model_dir / described["path"]))
    )
    if has_moved and (model_dir / VOCABULARY_COPY).is_file():
        described["path"] = VOCABULARY_COPY
    return vocabulary_from_description(described, model_dir)

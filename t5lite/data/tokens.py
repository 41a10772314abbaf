"""Records as token ids: encoded when they are read, or once into a cache."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Tokens
from t5lite.core.files import local_folder
from t5lite.data.sources.records import Records
from t5lite.data.storage import building
from t5lite.data.storage.array_records import ArrayRecords
from t5lite.data.storage.building import BuildOptions, Recipe
from t5lite.data.storage.shards import ShardWriter, summaries_of
from t5lite.data.text import preprocessors, templates
from t5lite.data.text.augmentations import Augmentation, augmentation_version, augmented
from t5lite.data.text.dialogue import Dialogue, dialogue_pairs, dialogue_text, encoded_turns
from t5lite.data.text.few_shot import Shots, fill_with_shots
from t5lite.data.text.fields import Record
from t5lite.data.text.vocabulary import Vocabulary

# Raise it whenever the same records, templates, preprocessors and vocabulary give other tokens than
# before. tests/data/test_encoding_version.py tells.
ENCODING_VERSION = 1
# Records in one shard of a cache.
SHARD_RECORDS = 1 << 16


@runtime_checkable
class TokenRecords(Protocol):
    """The token ids of each text of a record, by number; none if a preprocessor dropped it.

    They are (text,) or (inputs, targets). Of a dialogue they are the text and the weights of its
    tokens, or (inputs, targets, inputs, targets, ...).
    """

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Tokens, ...]: ...


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """Records that are encoded when they are read.

    Args:
        texts: templates, one for each text of a record.
        steps: names of preprocessors, in the order in which they are applied.
        list_separator: joins lists that a template names without a separator.
        augmentations: of the records that training reads.
        shots: few-shot examples in the first text.
        dialogue: takes the role of `texts`.
        max_length: tokens of the longest text of a dialogue, or of the longest inputs.
    """

    records: Records
    texts: tuple[str, ...]
    steps: tuple[str, ...]
    vocabulary: Vocabulary
    list_separator: str | None = None
    augmentations: tuple[Augmentation, ...] = ()
    shots: Shots | None = None
    dialogue: Dialogue | None = None
    takes_pairs: bool = False
    max_length: int = 0

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the text of the records."""
        steps = [preprocessors.version(step) for step in self.steps]
        made_of = f"{self.records.fingerprint}, {', '.join(map(repr, self.texts))} {steps}".strip()
        others = [augmentation_version(each) for each in self.augmentations]
        if self.shots is not None:
            others += [repr(self.shots.few_shot), self.shots.fingerprint]
        if self.dialogue is not None:
            others.append(repr(self.dialogue))
        return f"{made_of} {others}" if others else made_of

    @property
    def is_random(self) -> bool:
        """Whether the texts of a record differ from one reading in training to the next."""
        return bool(self.augmentations) or (
            self.shots is not None and not self.shots.few_shot.fixed
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tokens, ...]:
        return self.read(index)

    def record(self, index: int) -> Record | None:
        """Returns a record after the preprocessors; None if one drops it."""
        return preprocessors.changed(
            "Task.preprocessors",
            self.steps,
            self.records[index],
            index,
            kept=self.vocabulary.kept_texts if self.steps else None,
        )

    def read(self, index: int, rng: np.random.Generator | None = None) -> tuple[Tokens, ...]:
        """Returns the texts of a record.

        Args:
            rng: of augmentations and few-shot examples; None for the same texts at every call,
                without augmentation.

        Raises:
            UserError: naming the record.
        """
        plain = record = self.record(index)
        if plain is None or record is None:
            return ()
        if rng is not None and self.augmentations:
            record = augmented(self.augmentations, plain, index, rng, self.vocabulary)
        try:
            if self.dialogue is not None:
                return self._dialogue_texts(self.dialogue, record)
            shots = self.shots.texts(plain, index, rng) if self.shots is not None else ()
            return tuple(self.vocabulary.encode(text) for text in self._filled(record, shots))
        except UserError as error:
            raise UserError(f"record {index}: {error}") from error

    def _filled(self, record: Record, shots: Sequence[str]) -> list[str]:
        separator = self.list_separator
        if self.shots is None:
            return [templates.fill(text, record, list_separator=separator) for text in self.texts]
        inputs, *others = self.texts

        def fits(text: str) -> bool:
            return len(self.vocabulary.encode(text)) <= self.max_length

        return [
            fill_with_shots(inputs, record, shots, fits, separator),
            *(templates.fill(text, record, list_separator=separator) for text in others),
        ]

    def _dialogue_texts(self, turns_of: Dialogue, record: Record) -> tuple[Tokens, ...]:
        turns = encoded_turns(turns_of, record, self.vocabulary)
        made = dialogue_pairs if self.takes_pairs else dialogue_text
        return made(turns, self.max_length)


@dataclasses.dataclass(frozen=True)
class Cached:
    """Token ids from the shards of a cache."""

    records: ArrayRecords
    fingerprint: str
    num_texts: int
    id_type: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tokens, ...]:
        raw = self.records[index]
        if not raw:
            return ()
        # The lengths of all texts but the last come first.
        lengths = np.frombuffer(raw, np.uint32, self.num_texts - 1)
        ids = np.frombuffer(raw, self.id_type, offset=lengths.nbytes).astype(np.int32)
        return tuple(np.split(ids, np.cumsum(lengths))) if len(lengths) else (ids,)


def cached(tokenized: Tokenized, folder: str, options: BuildOptions) -> Cached:
    """Returns the same tokens from a cache below `folder`, which is built if it is missing.

    A cache belongs to records, templates, preprocessors and a vocabulary, and to the versions of
    the code that encodes.
    """
    id_type = "uint16" if tokenized.vocabulary.size <= 1 << 16 else "uint32"
    identity = [
        tokenized.fingerprint,
        tokenized.vocabulary.fingerprint,
        tokenized.list_separator,
        id_type,
        [ENCODING_VERSION, importlib.metadata.version("sentencepiece")],
    ]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    directory = local_folder("Task.token_cache", folder).absolute() / digest

    def parts() -> dict[str, _Range]:
        starts = range(0, len(tokenized), SHARD_RECORDS)
        return {
            f"tokens.array_record-{n:05d}-of-{len(starts):05d}": _Range(
                tokenized, id_type, start, min(start + SHARD_RECORDS, len(tokenized))
            )
            for n, start in enumerate(starts)
        }

    recipe = Recipe(name=f"token cache {digest}", write_part=_write_range, compressed=False)
    building.build_shards(directory, parts, recipe, options)
    shards = [
        (str(directory / name), 0, summary.records)
        for name, summary in summaries_of(directory).items()
    ]
    return Cached(ArrayRecords(shards), tokenized.fingerprint, len(tokenized.texts), id_type)


@dataclasses.dataclass(frozen=True)
class _Range:
    """The records of one shard of a cache."""

    tokenized: Tokenized
    id_type: str
    start: int
    stop: int


def _write_range(part: _Range, writer: ShardWriter) -> None:
    for index in range(part.start, part.stop):
        texts = part.tokenized[index]
        lengths = np.asarray([len(text) for text in texts[:-1]], np.uint32)
        ids: Sequence[Tokens] = [np.asarray(text, part.id_type) for text in texts]
        # NOTE: a dropped record and a single text without tokens are both empty: neither gives an
        # example.
        writer.write(lengths.tobytes() + b"".join(text.tobytes() for text in ids))

"""Tasks over records in memory, and what a stream of batches reads of them."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5lite.data.batching.features import DecoderLayout, EncoderDecoderLayout
from t5lite.data.sources.records import Records
from t5lite.data.storage.building import DEFAULT_OPTIONS, BuildOptions
from t5lite.data.task import Task
from t5lite.data.text.fields import Record, as_field
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.objectives.supervised import Supervised

VOCABULARY = ByteVocabulary()
LENGTH = 64
LAYOUT = EncoderDecoderLayout(LENGTH, LENGTH)
DECODER = DecoderLayout(LENGTH)


@dataclasses.dataclass(frozen=True)
class ListRecords:
    """Records in memory."""

    rows: Sequence[dict[str, Any]]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.rows[0])

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return {name: as_field(value) for name, value in self.rows[index].items()}


@dataclasses.dataclass(frozen=True)
class ListSource:
    """The same records in every split, or those of each split."""

    rows: Sequence[dict[str, Any]]
    validation: Sequence[dict[str, Any]] = ()

    def records(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Records:
        return ListRecords(self.validation or self.rows if split == "validation" else self.rows)


def task(rows: Sequence[dict[str, Any]], **choices: Any) -> Task:
    """Pairs of the fields `q` and `a`."""
    given = {
        "source": ListSource(rows),
        "vocabulary": VOCABULARY,
        "objective": Supervised(inputs_length=LENGTH, targets_length=LENGTH),
        "inputs": "{q}",
        "targets": "{a}",
    }
    return Task(**{**given, **choices})


def examples(row: dict[str, np.ndarray], number: int) -> list[tuple[str, str, str]]:
    """The inputs, targets, and learned targets of each example in a row of a batch."""
    found = []
    for segment in range(1, int(row["decoder_segment_ids"][number].max()) + 1):
        here = row["decoder_segment_ids"][number] == segment
        targets = row["decoder_target_tokens"][number][here]
        learned = targets[row["decoder_loss_weights"][number][here] > 0]
        inputs = np.zeros(0, np.int32)
        if "encoder_input_tokens" in row:
            is_input = row["encoder_segment_ids"][number] == segment
            inputs = row["encoder_input_tokens"][number][is_input]
        found.append(tuple(shown(ids) for ids in (inputs, targets, learned)))
    return found


def shown(ids: np.ndarray) -> str:
    """The text of bytes; `|` is an end of sequence."""
    return bytes(np.where(ids == VOCABULARY.eos_id, ord("|"), ids - 3).astype(np.uint8)).decode()

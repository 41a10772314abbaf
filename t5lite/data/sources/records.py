"""The records of a split of a TFDS data set, by number."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from t5lite.core.errors import UserError, suggestion
from t5lite.data.sources.files import Record
from t5lite.data.storage.array_records import ArrayRecords

log = logging.getLogger(__name__)


@runtime_checkable
class Records(Protocol):
    """Records by number, each the text of its fields; the fingerprint changes when they change."""

    @property
    def fields(self) -> tuple[str, ...]: ...
    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


class TfdsRecords:
    """The records of a split of a TFDS data set that lies in array_record files.

    Fields are texts, class labels by their names ("<unk>" where there is none), and numbers as
    Python writes them; a field of any other kind is left out.
    """

    def __init__(
        self, builder: Any, split: str, *, digests: Mapping[str, str] | None = None
    ) -> None:
        try:
            instructions = builder.info.splits[split].file_instructions
        except (ValueError, KeyError) as error:
            splits = suggestion(split, builder.info.splits)
            raise UserError(f"{builder.info.full_name} has no split {split!r}; {splits}") from error
        self._name = f"{builder.info.full_name} {split}"
        self._features = builder.info.features
        self._examples = ArrayRecords(
            [(str(i.filename), i.skip, i.take if i.take >= 0 else i.examples_in_shard - i.skip)
             for i in instructions]
        )  # fmt: skip
        # Which part of which file, and where it is known a digest of all that is in the file.
        self._parts = [
            (name := str(i.filename).rpartition("/")[2], i.skip, i.take, (digests or {}).get(name))
            for i in instructions
        ]
        self._texts = dict(_texts(self._features))
        if len(self) == 0:
            raise UserError(f"{builder.info.full_name} split {split!r} is empty: it has no record")

    @property
    def fields(self) -> tuple[str, ...]:
        # TFDS gives them in another order in every process.
        return tuple(sorted(self._texts))

    @functools.cached_property
    def fingerprint(self) -> str:
        """The number of records and a digest of all of them, or of some from all over."""
        digest = hashlib.sha256(repr(self._parts).encode())
        if any(part[3] is None for part in self._parts):
            numbers = np.unique(np.linspace(0, len(self) - 1, num=64).astype(int))
            # Not the bytes: TFDS writes fields in another order whenever it makes the data set.
            digest.update(json.dumps([self[int(n)] for n in numbers], sort_keys=True).encode())
        return f"{len(self)} records, {digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        example = self._features.deserialize_example_np(self._examples[index])
        try:
            return {name: text(example[name]) for name, text in self._texts.items()}
        except UnicodeDecodeError:
            _warn_of_bytes(self._name)
            replaced = {
                name: value.decode(errors="replace").encode() if type(value) is bytes else value
                for name, value in example.items()
            }
            return {name: text(replaced[name]) for name, text in self._texts.items()}


@functools.cache
def _warn_of_bytes(name: str) -> None:
    log.warning("%s holds text that is no UTF-8; such bytes become U+FFFD", name)


def _texts(features: Any) -> Iterator[tuple[str, Callable[[Any], str]]]:
    """Yields the fields that can be text, each with what makes it text."""
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        if isinstance(feature, tfds.features.Text):
            yield name, bytes.decode
        elif isinstance(feature, tfds.features.ClassLabel):
            yield name, functools.partial(_label, feature)
        elif isinstance(feature, tfds.features.Scalar) or getattr(feature, "shape", None) == ():
            yield name, _plain


def _label(feature: Any, number: int) -> str:
    """Returns the name of a class; -1 stands for what is not told, as in test splits of GLUE."""
    return str(feature.int2str(number)) if number >= 0 else "<unk>"


def _plain(value: Any) -> str:
    return value.decode() if type(value) is bytes else str(value)

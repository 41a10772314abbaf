"""The records of a split of a TFDS data set, by number."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from t5lite.core.errors import UserError, suggestion
from t5lite.data.storage.array_records import ArrayRecords
from t5lite.data.text.fields import Record, as_field, from_stored

log = logging.getLogger(__name__)


@runtime_checkable
class Records(Protocol):
    """Records by number; the fingerprint changes with their text."""

    @property
    def fields(self) -> tuple[str, ...]: ...
    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


def instructions_of(owner: str, splits: Any, split: str) -> list[Any]:
    """Returns the parts of files that hold a split, or a slice or sum of splits.

    Args:
        owner: the data set, for errors.
        splits: of the data set.

    Raises:
        UserError: if the data set has no such split.
    """
    try:
        return list(splits[split].file_instructions)
    except (ValueError, KeyError) as error:
        near = suggestion(split, splits)
        raise UserError(f"{owner} has no split {split!r}; {near}") from error


class TfdsRecords:
    """The records of a split of a TFDS data set in array_record files.

    Fields are texts, class labels by name ("<unk>" for a missing label), numbers as Python writes
    them, and lists and objects of these as JSON. Fields of other types are left out.

    Args:
        name: of the split, for messages.
        features: of the data set.
        instructions: from `instructions_of`.
        digests: of the records of each file, by file name, if known.
        has_stored_fields: whether texts were written by `to_stored`.

    Raises:
        UserError: if the split is empty.
    """

    def __init__(
        self,
        name: str,
        features: Any,
        instructions: Sequence[Any],
        *,
        digests: Mapping[str, str] | None = None,
        has_stored_fields: bool = False,
    ) -> None:
        self._name = name
        self._features = features
        self._has_stored_fields = has_stored_fields
        self._examples = ArrayRecords(
            [(str(i.filename), i.skip, i.take if i.take >= 0 else i.examples_in_shard - i.skip)
             for i in instructions]
        )  # fmt: skip
        # Parts of files, with the digest of the file if it is known.
        self._parts = [
            (file := str(i.filename).rpartition("/")[2], i.skip, i.take, (digests or {}).get(file))
            for i in instructions
        ]
        self._texts = dict(_scalar_fields(features))
        self._values = dict(_structured_fields(features))
        if len(self) == 0:
            raise UserError(f"split {name!r} is empty: it has no record")

    @property
    def fields(self) -> tuple[str, ...]:
        # TFDS orders fields differently in every process.
        return tuple(sorted({*self._texts, *self._values}))

    @functools.cached_property
    def fingerprint(self) -> str:
        """The number of records, and a digest of all of them or of a sample."""
        digest = hashlib.sha256(repr(self._parts).encode())
        if any(part[3] is None for part in self._parts):
            numbers = np.unique(np.linspace(0, len(self) - 1, num=64).astype(int))
            # Not the bytes: TFDS orders fields differently whenever it builds the data set.
            # Not lists and objects: version 0.1 left them out.
            sample = [self._scalars(self._example(int(number))) for number in numbers]
            digest.update(json.dumps(sample, sort_keys=True).encode())
        return f"{len(self)} records, {digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        example = self._example(index)
        record = self._scalars(example)
        if self._has_stored_fields:
            return {name: from_stored(text) for name, text in record.items()}
        for name, value in self._values.items():
            record[name] = as_field(value(example[name]))
        return record

    def _example(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = self._features.deserialize_example_np(self._examples[index])
        return example

    def _scalars(self, example: Mapping[str, Any]) -> Record:
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
    log.warning("split %s holds text that is not UTF-8; such bytes become U+FFFD", name)


def _scalar_fields(features: Any) -> Iterator[tuple[str, Callable[[Any], str]]]:
    """Yields the fields with a text or number, each with a function that returns its text."""
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        if isinstance(feature, tfds.features.Text):
            yield name, bytes.decode
        elif isinstance(feature, tfds.features.ClassLabel):
            yield name, functools.partial(_label, feature)
        elif isinstance(feature, tfds.features.Scalar) or getattr(feature, "shape", None) == ():
            yield name, _plain


def _structured_fields(features: Any) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Yields the fields with a list or object, each with a function that returns its JSON value."""
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
        is_list = inner is not feature
        if isinstance(inner, tfds.features.FeaturesDict):
            items = {key: _item(value) for key, value in inner.items()}
            if all(items.values()):
                yield name, functools.partial(_object, items, is_list)
        elif is_list and (item := _item(inner)):
            yield name, functools.partial(_list, item)


def _item(feature: Any) -> Callable[[Any], Any] | None:
    """Returns the function from an item of a list or object to its JSON value."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Text):
        return functools.partial(bytes.decode, errors="replace")
    if isinstance(feature, tfds.features.ClassLabel):
        return functools.partial(_label, feature)
    if isinstance(feature, tfds.features.Scalar) or getattr(feature, "shape", None) == ():
        return _json_scalar
    return None


def _list(item: Callable[[Any], Any], values: Any) -> list[Any]:
    return [item(value) for value in values]


def _object(items: Mapping[str, Any], is_list: bool, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object, or an object of lists for a list of objects, as TFDS stores it."""
    return {
        name: _list(item, values[name]) if is_list else item(values[name])
        for name, item in items.items()
    }


def _label(feature: Any, number: int) -> str:
    """Returns the name of a class; -1 is a missing label, as in the test splits of GLUE."""
    return str(feature.int2str(int(number))) if number >= 0 else "<unk>"


def _plain(value: Any) -> str:
    return value.decode() if type(value) is bytes else str(value)


def _json_scalar(value: Any) -> Any:
    if type(value) is bytes:
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value

"""Where documents come from: TFDS data sets in array_record, read by random access."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from t5lite.core.errors import UserError, suggestion
from t5lite.data.text_files import text_files_config

log = logging.getLogger(__name__)


@runtime_checkable
class Documents(Protocol):
    """Documents by number, each the bytes of a text; the fingerprint changes when they change."""

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> bytes: ...


@runtime_checkable
class Source(Protocol):
    """Gives the documents of a split."""

    def documents(self, split: str) -> Documents: ...


@dataclasses.dataclass(frozen=True)
class _Field:
    """One field of the examples of a TFDS data source."""

    examples: Any
    name: str

    @functools.cached_property
    def fingerprint(self) -> str:
        """The number of documents and a digest of some of them, from all over the split."""
        numbers = np.unique(np.linspace(0, len(self) - 1, num=64).astype(int))
        digest = hashlib.sha256(b"\0".join(self[int(number)] for number in numbers))
        return f"{len(self)} documents, {digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> bytes:
        return self.examples[index][self.name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource:
    """A data set by its TFDS name, prepared as array_record at first use.

    Args:
        name: as TFDS takes it, `"dataset"`, `"dataset/config"` or `"dataset/config:version"`.
            `"python_docs"` comes with t5lite and needs no network.
        text_field: the field that holds the text.
        data_dir: where data sets are kept; None for TFDS's default, `~/tensorflow_datasets` or
            the environment's TFDS_DATA_DIR.
    """

    name: str
    text_field: str = "text"
    data_dir: str | None = None

    def documents(self, split: str) -> Documents:
        """Returns the documents of `split`, which may be a slice such as "train[:10%]"."""
        return _documents(self._builder, split, self.text_field)

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        # Registers the data set that comes with t5lite.
        import t5lite.data.python_docs  # noqa: F401

        try:
            with _quiet():
                return tfds.builder(self.name, data_dir=self.data_dir, file_format="array_record")
        # ImportError: some data sets of the catalogue need packages that t5lite does not.
        except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
            known = suggestion(
                self.name.split("/")[0], tfds.core.registered.list_imported_builders()
            )
            remedy = known if known.startswith("did") else "see the catalogue of TFDS"
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"TfdsSource.name {self.name!r} cannot be had; {remedy} ({reason})"
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource:
    """Local text files, built into an array_record data set at first use.

    Args:
        files: for each split a path, or a pattern with wildcards in the name of the file, or a list
            of them.
        folder: where paths that are not absolute begin.
        record: what one document is: a "line", or a whole "file".
        max_bytes: longer documents are cut, at the end of a line where there is one.
        data_dir: as in `TfdsSource`.

    Raises:
        UserError: where a file is not there, or `record` is unknown.
    """

    files: Mapping[str, Any]
    folder: str = "."
    record: str = "line"
    max_bytes: int = 65536
    data_dir: str | None = None

    def documents(self, split: str) -> Documents:
        """Returns the documents of `split` in the order of the files."""
        return _documents(self._builder, split, "text")

    @functools.cached_property
    def _builder(self) -> Any:
        from t5lite.data.text_files import TextFiles

        config = text_files_config(self.files, self.folder, self.record, self.max_bytes)
        return TextFiles(config=config, data_dir=self.data_dir, file_format="array_record")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from the terminal what TFDS prints: bars with carriage returns, hints of TensorFlow."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _documents(builder: Any, split: str, field: str) -> Documents:
    if not builder.is_prepared():
        log.info("building data set %s in %s", builder.info.full_name, builder.data_dir)
        with _quiet():
            builder.download_and_prepare(file_format="array_record")
    try:
        examples = builder.as_data_source(split=split)
    except ValueError as error:
        splits = suggestion(split, builder.info.splits)
        raise UserError(f"{builder.info.name} has no split {split!r}; {splits}") from error
    if field not in builder.info.features:
        fields = suggestion(field, builder.info.features)
        raise UserError(f"{builder.info.full_name} has no field {field!r}; {fields}")
    if len(examples) == 0:
        raise UserError(f"{builder.info.full_name} split {split!r} is empty: there is no document")
    return _Field(examples, field)

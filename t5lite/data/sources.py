"""Where records come from: files and TFDS data sets, in array_record, read by number."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from t5lite.core.errors import UserError, choose, suggestion
from t5lite.data import building
from t5lite.data.array_records import ArrayRecords
from t5lite.data.building import DEFAULT_OPTIONS, BuildOptions, Recipe, ShardWriter, Summary
from t5lite.data.files import (
    FORMATS,
    Bad,
    Part,
    Record,
    find_files,
    format_of,
    parts_of,
    read_part,
    stamp,
)

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


@runtime_checkable
class Source(Protocol):
    """Gives the records of a split, which are made ready at first use."""

    def records(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Records: ...


class TfdsRecords:
    """The records of a split of a TFDS data set that lies in array_record files.

    Fields are texts, class labels by their names, and numbers as Python writes them; a field of
    any other kind is left out.
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
            some = b"\0".join(self._examples[int(number)] for number in numbers)
            digest.update(some)
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
def _tell_left_out(name: str, description: str) -> None:
    log.warning("%s: %s", name, description)


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
            yield name, feature.int2str
        elif isinstance(feature, tfds.features.Scalar) or getattr(feature, "shape", None) == ():
            yield name, lambda value: value.decode() if type(value) is bytes else str(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource:
    """A data set by its TFDS name, prepared as array_record at first use.

    Args:
        name: as TFDS takes it, `"dataset"`, `"dataset/config"` or `"dataset/config:version"`.
            `"python_docs"` comes with t5lite and needs no network.
        data_dir: where data sets are kept; None for TFDS's default, `~/tensorflow_datasets` or
            the environment's TFDS_DATA_DIR.
    """

    name: str
    data_dir: str | None = None

    def records(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Records:
        """Returns the records of `split`, which may be a slice such as "train[:10%]"."""
        builder = self._builder
        if not builder.is_prepared():
            log.info("building data set %s in %s", builder.info.full_name, builder.data_dir)
            try:
                with _quiet():
                    builder.download_and_prepare(file_format="array_record")
            except (OSError, ImportError, AssertionError, ValueError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"TfdsSource.name {self.name!r} cannot be prepared: {reason}"
                ) from error
        return TfdsRecords(builder, split)

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

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_builder"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource:
    """Files of text, JSONL, TSV or Parquet, built into an array_record TFDS data set at first use.

    Args:
        files: for each split a path, or a pattern with wildcards, or a list of them; compressed
            ones too (.gz, .bz2, .xz), and any address that fsspec knows.
        fields: those that are kept; of TSV the names of all columns in order.
        format: "lines" (a record a line), "document" (a file is one), "jsonl", "tsv" or "parquet";
            None for what the names of the files say.
        folder: where paths that are not absolute begin.
        max_bytes: records of a single field that are longer are cut into several, at the end of
            a line where there is one.
        max_errors: rows that cannot be read may be left out up to this number.
        data_dir: as in `TfdsSource`.

    Raises:
        UserError: for an unknown format, or numbers out of range.
    """

    files: Mapping[str, Any]
    fields: Sequence[str] = ("text",)
    format: str | None = None
    folder: str = "."
    max_bytes: int = 65536
    max_errors: int = 0
    data_dir: str | None = None

    def __post_init__(self) -> None:
        if self.format is not None:
            choose("FileSource.format", self.format, FORMATS)
        if self.max_bytes < 4:
            raise UserError(f"FileSource.max_bytes must be at least 4, got {self.max_bytes}")
        if self.max_errors < 0:
            raise UserError(f"FileSource.max_errors must be at least 0, got {self.max_errors}")
        are_names = all(isinstance(name, str) and name for name in self.fields)
        if not self.fields or not are_names or len(set(self.fields)) != len(self.fields):
            raise UserError(f"FileSource.fields must be names, each once, got {self.fields!r}")
        for split, patterns in self.files.items():
            patterns = [patterns] if isinstance(patterns, str) else patterns
            if not isinstance(split, str) or not re.fullmatch(r"(?!all$)[A-Za-z]\w*", split):
                raise UserError(
                    f"FileSource.files must name splits such as 'train', not 'all', got {split!r}"
                )
            if not isinstance(patterns, list | tuple) or not all(
                isinstance(pattern, str) for pattern in patterns
            ):
                raise UserError(
                    f"FileSource.files[{split!r}] must be a path or several, got {patterns!r}"
                )
        if not self.files:
            raise UserError("FileSource.files must name a split, as in {'train': 'a.txt'}, got {}")

    def records(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Records:
        """Returns the records of `split` in the order of the files."""
        import tensorflow_datasets as tfds

        folder, parts, recipe = self._plan
        if not (folder / building.SUMMARY).exists():
            building.build_shards(folder, parts(), recipe, options)
        summaries = building.summaries_of(folder)
        # It may have been built with a higher limit.
        whole = building.check_bad(building.add(summaries.values()), self.max_errors)
        if whole.bad:
            _tell_left_out(recipe.name, building.describe(whole))
        with _quiet():
            builder = tfds.builder_from_directory(folder)
        digests = {name: summary.digest for name, summary in summaries.items()}
        return TfdsRecords(builder, split, digests=digests)

    @functools.cached_property
    def _plan(self) -> tuple[pathlib.Path, Callable[[], dict[str, Any]], Recipe]:
        """Where the data set is, what goes into its shards, and how; files are looked at once."""
        found: dict[str, list[str]] = {}
        for split, patterns in self.files.items():
            patterns = [patterns] if isinstance(patterns, str) else patterns
            found[split] = [p for pattern in patterns for p in find_files(self.folder, pattern)]
        fields = tuple(self.fields)
        stamps = {split: [stamp(path) for path in paths] for split, paths in found.items()}
        identity = [stamps, self.format, fields, self.max_bytes]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        recipe = Recipe(
            name=f"data set files/{digest}",
            write_part=_write_part,
            finish=functools.partial(_finish, fields=fields, splits=tuple(found)),
            max_errors=self.max_errors,
        )
        parts = functools.partial(_parts, found, self.format, fields, self.max_bytes)
        return data_folder(self.data_dir) / "files" / digest / "1.0.0", parts, recipe


def data_folder(data_dir: str | None) -> pathlib.Path:
    """Returns where data sets are kept."""
    import tensorflow_datasets as tfds

    return pathlib.Path(data_dir or str(tfds.core.constants.DATA_DIR)).expanduser().absolute()


@dataclasses.dataclass(frozen=True)
class _FilePart:
    """What one shard is made from."""

    part: Part
    fields: tuple[str, ...]
    max_bytes: int


def _parts(
    found: Mapping[str, Sequence[str]],
    format: str | None,
    fields: tuple[str, ...],
    max_bytes: int,
) -> dict[str, _FilePart]:
    parts = {}
    for split, paths in found.items():
        formats = [(path, format or format_of(path)) for path in paths]
        for path, of_file in formats:
            if of_file in ("lines", "document") and len(fields) != 1:
                raise UserError(
                    f"{path} is read as {of_file!r} and has one field, FileSource.fields has "
                    f"{len(fields)}: {', '.join(fields)}"
                )
        of_split = [part for path, of_file in formats for part in parts_of(path, of_file)]
        for number, part in enumerate(of_split):
            shard = f"files-{split}.array_record-{number:05d}-of-{len(of_split):05d}"
            parts[shard] = _FilePart(part, fields, max_bytes)
    return parts


def _write_part(part: _FilePart, writer: ShardWriter) -> None:
    from tensorflow_datasets.core import example_serializer

    features = _text_features(part.fields)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    for made in read_part(part.part, part.fields, max_bytes=part.max_bytes):
        if made is None:
            writer.leave_out_empty()
        elif isinstance(made, Bad):
            writer.leave_out_bad(str(made))
        else:
            record = serializer.serialize_example(features.encode_example(made))
            # Its fields are in another order in every process.
            writer.write(record, identity=json.dumps(made, sort_keys=True).encode())


def _text_features(fields: Sequence[str]) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in fields})


def _finish(
    folder: pathlib.Path,
    summaries: Mapping[str, Summary],
    *,
    fields: tuple[str, ...],
    splits: tuple[str, ...],
) -> None:
    """Writes what makes a folder of shards a TFDS data set."""
    import tensorflow_datasets as tfds

    infos = []
    for split in splits:
        shards = [s for name, s in summaries.items() if name.startswith(f"files-{split}.")]
        whole = building.add(shards)
        if whole.records == 0:
            raise UserError(
                f"split {split!r} of FileSource must hold text, but there is no record in it "
                f"({whole.empty} empty rows, {whole.bad} that cannot be read)"
            )
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.records for shard in shards],
                num_bytes=whole.bytes,
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=folder,
                    dataset_name="files",
                    split=split,
                    filetype_suffix="array_record",
                ),
            )
        )
    with _quiet():
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=_text_features(fields),
            split_infos=infos,
            version="1.0.0",
            description="Records of files.",
            check_data=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from the terminal what TFDS prints: bars with carriage returns, hints of TensorFlow."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield

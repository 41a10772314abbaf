"""Files as a source: built into a TFDS data set of array_record shards at first use."""

import collections
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, choose
from t5lite.data.sources.files import (
    Bad,
    Part,
    find_files,
    format_of,
    parts_of,
    stamp,
)
from t5lite.data.sources.formats import FORMATS, read_part
from t5lite.data.sources.records import Records, TfdsRecords
from t5lite.data.sources.tfds_source import data_folder, quiet
from t5lite.data.storage.building import DEFAULT_OPTIONS, BuildOptions, Recipe, build_shards
from t5lite.data.storage.shards import ShardWriter, Summary, add, check_bad, describe, summaries_of

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource:
    """Files of text, JSONL, TSV or Parquet, built into an array_record TFDS data set at first use.

    Args:
        files: for each split a path, or a pattern with wildcards, or a list of them; compressed
            ones too (.gz, .bz2, .xz), and any address that fsspec knows.
        fields: those that are kept; of TSV the names of all columns in order, where a first line
            that says them is no record.
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
        for split, given in self.files.items():
            patterns = _several(given)
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
        build_shards(folder, parts, recipe, options)
        summaries = summaries_of(folder)
        # It may have been built with a higher limit.
        whole = check_bad(add(summaries.values()), self.max_errors)
        if whole.bad:
            _tell_left_out(recipe.name, describe(whole))
        with quiet():
            builder = tfds.builder_from_directory(folder)
        digests = {name: summary.digest for name, summary in summaries.items()}
        return TfdsRecords(builder, split, digests=digests)

    @functools.cached_property
    def _plan(self) -> tuple[pathlib.Path, Callable[[], dict[str, Any]], Recipe]:
        """Where the data set is, what goes into its shards, and how; files are looked at once."""
        found = {
            split: [p for pattern in _several(given) for p in find_files(self.folder, pattern)]
            for split, given in self.files.items()
        }
        for split, paths in found.items():
            for path, count in collections.Counter(paths).items():
                if count > 1:
                    raise UserError(f"FileSource.files[{split!r}] names {path} more than once")
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


def _several(patterns: Any) -> Any:
    """One pattern may be written without a list around it."""
    return [patterns] if isinstance(patterns, str) else patterns


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
        formats = [(path, format_of(path, format)) for path in paths]
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
        whole = add(shards)
        if whole.records == 0:
            raise UserError(
                f"split {split!r} of FileSource must hold text, but there is no record in it; "
                f"{describe(whole)}"
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
    with quiet():
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=_text_features(fields),
            split_infos=infos,
            version="1.0.0",
            description="Records of files.",
            check_data=False,
        )


@functools.cache
def _tell_left_out(name: str, description: str) -> None:
    log.warning("%s: %s", name, description)

"""Files as a source: each split is built into a TFDS data set of array_record shards."""

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

from t5lite.core.errors import UserError, suggestion
from t5lite.core.fields import check_field_choice, field_error, field_name
from t5lite.core.files import write_atomically
from t5lite.data.sources.files import Bad, Part, find_files, format_of, stamp
from t5lite.data.sources.formats import FORMATS, parts_of, read_part
from t5lite.data.sources.records import Records, TfdsRecords, instructions_of
from t5lite.data.sources.tfds_source import data_folder, quiet
from t5lite.data.sources.tsv import header_of
from t5lite.data.storage.building import DEFAULT_OPTIONS, BuildOptions, Recipe, build_shards
from t5lite.data.storage.shards import (
    ShardWriter,
    Summary,
    add,
    check_bad,
    summaries_of,
    summary_text,
)
from t5lite.data.text.fields import to_stored

log = logging.getLogger(__name__)

# The version of how files become records. Data sets of another version are built again.
BUILD_VERSION = 2

# A file beside the shards that says what they were built from.
SOURCE = "source.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource:
    """Files of text, JSONL, TSV or Parquet; a split is built into a data set when it is first used.

    A data set belongs to one split: its files, their times, and the fields below. The order of the
    splits does not matter, and a new split does not rebuild the others.

    Args:
        files: for each split a path, a pattern with wildcards, or a list of them. Compressed files
            (.gz, .bz2, .xz) and addresses of fsspec are accepted.
        fields: the fields to keep; for TSV without a header, the names of all columns in order.
        format: "lines" (a record per line), "document" (a record per file), "jsonl", "tsv" or
            "parquet"; None for the format that the file names imply.
        header: for TSV, whether the first line names the columns; None to take it as a header if it
            names all fields, in any order and case.
        folder: the folder of relative paths.
        max_bytes: longer records of a single field are split, at the end of a line if possible.
        max_errors: rows of a split that may be left out because they cannot be read.
        data_dir: as in `TfdsSource`.

    Raises:
        UserError: for an unknown format, or numbers out of range.
    """

    files: Mapping[str, Any]
    fields: Sequence[str] = ("text",)
    format: str | None = None
    header: bool | None = None
    folder: str = "."
    max_bytes: int = 65536
    max_errors: int = 0
    data_dir: str | None = None

    def __post_init__(self) -> None:
        if self.format is not None:
            check_field_choice(self, "format", FORMATS)
        if self.header is not None and not isinstance(self.header, bool):
            raise field_error(self, "header", "True, False or None")
        for name, least in (("max_bytes", 4), ("max_errors", 0)):
            if type(value := getattr(self, name)) is not int or value < least:
                raise field_error(self, name, f"at least {least}")
        are_names = all(isinstance(name, str) and name for name in self.fields)
        if not self.fields or not are_names or len(set(self.fields)) != len(self.fields):
            raise field_error(self, "fields", "names, each once")
        owner = field_name(self, "files")
        for split, given in self.files.items():
            patterns = _as_list(given)
            if not isinstance(split, str) or not re.fullmatch(r"(?!all$)[A-Za-z]\w*", split):
                raise UserError(
                    f"{owner} must name splits such as 'train', not 'all', got {split!r}"
                )
            if not isinstance(patterns, list | tuple) or not all(
                isinstance(pattern, str) for pattern in patterns
            ):
                raise UserError(
                    f"{owner}[{split!r}] must be a path or a list of paths, got {patterns!r}"
                )
        if not self.files:
            raise UserError(f"{owner} must name a split, as in {{'train': 'a.txt'}}, got {{}}")

    def records(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Records:
        """Returns the records of a split, in the order of the files.

        Args:
            split: a split, a slice such as "train[:10%]", a sum such as "train+test", or "all".

        Raises:
            UserError: if the split is unknown, or its files are missing or cannot be read.
        """
        import tensorflow_datasets as tfds

        instructions: list[Any] = []
        digests: dict[str, str] = {}
        for name, part in self._parts_of_split(split):
            plan = self._plan(name)
            build_shards(plan.folder, plan.parts, plan.recipe, options)
            summaries = summaries_of(plan.folder)
            # The data set may have been built with a higher limit.
            whole = check_bad(add(summaries.values()), self.max_errors)
            if whole.bad:
                _warn_of_bad_rows(plan.recipe.name, summary_text(whole))
            with quiet():
                builder = tfds.builder_from_directory(plan.folder)
            instructions += instructions_of(builder, part)
            digests |= {name: summary.digest for name, summary in summaries.items()}
        return TfdsRecords(
            f"files {split}",
            builder.info.features,
            instructions,
            digests=digests,
            has_stored_fields=True,
        )

    def _parts_of_split(self, split: str) -> list[tuple[str, str]]:
        """Returns pairs (name of a split, its slice) whose records together are `split`."""
        if split == "all":
            return [(name, name) for name in self.files]
        terms = [term.strip() for term in split.split("+")]
        names = [re.match(r"\w*", term).group() for term in terms]  # type: ignore[union-attr]
        for name in names:
            if name not in self.files:
                known = suggestion(name, self.files)
                raise UserError(f"{field_name(self, 'files')} has no split {name!r}; {known}")
        return [(names[0], split)] if len(set(names)) == 1 else list(zip(names, terms, strict=True))

    def _plan(self, split: str) -> "_Plan":
        # Files are looked up once.
        plans: dict[str, _Plan] = self.__dict__.setdefault("_plans", {})
        if split not in plans:
            plans[split] = self._new_plan(split)
        return plans[split]

    def _new_plan(self, split: str) -> "_Plan":
        patterns = _as_list(self.files[split])
        paths = [path for pattern in patterns for path in find_files(self.folder, pattern)]
        for path, count in collections.Counter(paths).items():
            if count > 1:
                raise UserError(
                    f"{field_name(self, 'files')}[{split!r}] names {path} more than once"
                )
        source = {
            "version": BUILD_VERSION,
            "split": split,
            "files": [stamp(path) for path in paths],
            "format": self.format,
            "header": self.header,
            "fields": list(self.fields),
            "max_bytes": self.max_bytes,
        }
        digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]
        recipe = Recipe(
            name=f"data set files/{digest} of split {split!r}",
            write_part=_write_part,
            finish=functools.partial(_finish, source=source),
            max_errors=self.max_errors,
        )
        return _Plan(
            data_folder(self.data_dir) / "files" / digest / "1.0.0",
            functools.partial(_shards, self, split, paths),
            recipe,
        )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Where the data set of a split is, what goes into its shards, and how."""

    folder: pathlib.Path
    parts: Callable[[], Mapping[str, Any]]
    recipe: Recipe


def _as_list(patterns: Any) -> Any:
    return [patterns] if isinstance(patterns, str) else patterns


@dataclasses.dataclass(frozen=True)
class _FilePart:
    """The content of one shard."""

    part: Part
    fields: tuple[str, ...]
    max_bytes: int


def _shards(source: FileSource, split: str, paths: Sequence[str]) -> dict[str, _FilePart]:
    fields = tuple(source.fields)
    parts: list[Part] = []
    for path in paths:
        format = format_of(path, source.format)
        if format in ("lines", "document") and len(fields) != 1:
            raise UserError(
                f"{path} is read as {format!r} and has one field, {field_name(source, 'fields')} "
                f"has {len(fields)}: {', '.join(fields)}"
            )
        of_file = parts_of(path, format)
        columns = header_of(path, fields, source.header) if format == "tsv" else None
        if columns is not None:
            log.info("%s: the first line is a header: %s", path, ", ".join(columns))
        parts += [dataclasses.replace(part, columns=columns) for part in of_file]
    return {
        f"files-{split}.array_record-{number:05d}-of-{len(parts):05d}": _FilePart(
            part, fields, source.max_bytes
        )
        for number, part in enumerate(parts)
    }


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
            stored = {name: to_stored(field) for name, field in made.items()}
            record = serializer.serialize_example(features.encode_example(stored))
            # The serialized fields are in another order in every process.
            writer.write(record, identity=_identity(made))


def _identity(record: Mapping[str, str]) -> bytes:
    """Returns bytes that identify a record; version 0.1 wrote fields of JSON in ASCII."""
    fields = {
        name: json.dumps(json.loads(field)) if type(field) is not str else field
        for name, field in record.items()
    }
    return json.dumps(fields, sort_keys=True).encode()


def _text_features(fields: Sequence[str]) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in fields})


def _finish(
    folder: pathlib.Path, summaries: Mapping[str, Summary], *, source: Mapping[str, Any]
) -> None:
    """Writes the metadata that makes a folder of shards a TFDS data set."""
    import tensorflow_datasets as tfds

    split = source["split"]
    whole = add(summaries.values())
    if whole.records == 0:
        raise UserError(
            f"split {split!r} of FileSource must hold text, but it has no record; "
            f"{summary_text(whole)}"
        )
    info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[summary.records for summary in summaries.values()],
        num_bytes=whole.bytes,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="files", split=split, filetype_suffix="array_record"
        ),
    )
    with quiet():
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=_text_features(source["fields"]),
            split_infos=[info],
            version="1.0.0",
            description="Records of files.",
            check_data=False,
        )
    write_atomically(folder / SOURCE, json.dumps(source))


@functools.cache
def _warn_of_bad_rows(name: str, description: str) -> None:
    log.warning("%s: %s", name, description)

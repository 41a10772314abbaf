"""How the files of a split become a TFDS data set of array_record shards."""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.files import write_atomically
from t5lite.core.records import TEXT, Kind, Schema, integer, list_of
from t5lite.data.sources.files import Bad, Part, format_of, stamp
from t5lite.data.sources.formats import parts_of, read_part
from t5lite.data.sources.tfds_source import data_folder, quiet
from t5lite.data.sources.tsv import header_of
from t5lite.data.storage.building import Recipe
from t5lite.data.storage.shards import ShardWriter, Summary, add, summary_text
from t5lite.data.text.fields import to_stored

log = logging.getLogger(__name__)

# The version of how files become records. Data sets of another version are built again.
BUILD_VERSION = 2
# The version of a data set in the sense of TFDS, which names its folder.
VERSION = "1.0.0"

# A file beside the shards that says what they were built from: `SplitBuild.source`.
SOURCE = "source.json"
_STAMP = Kind(
    "a path, a size and a time or tag",
    lambda value: isinstance(value, list) and list(map(type, value)) == [str, int, str],
)
SOURCE_SCHEMA = Schema(
    required={"version": integer(0), "split": TEXT, "files": list_of(_STAMP)},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitBuild:
    """The files of a split, and how `FileSource` reads them.

    Args:
        split: its name.
        paths: its files.
        fields, format, header, max_bytes: as in `FileSource`.
    """

    split: str
    paths: tuple[str, ...]
    fields: tuple[str, ...]
    format: str | None
    header: bool | None
    max_bytes: int

    @functools.cached_property
    def source(self) -> dict[str, Any]:
        """Everything that the data set depends on, as a JSON value."""
        return {
            "version": BUILD_VERSION,
            "split": self.split,
            "files": [stamp(path) for path in self.paths],
            "format": self.format,
            "header": self.header,
            "fields": list(self.fields),
            "max_bytes": self.max_bytes,
        }

    @functools.cached_property
    def digest(self) -> str:
        """The name of the data set, which changes with the files and how they are read."""
        return hashlib.sha256(json.dumps(self.source, sort_keys=True).encode()).hexdigest()[:16]

    def folder(self, data_dir: str | None) -> pathlib.Path:
        """Returns the folder of the data set."""
        return data_folder(data_dir) / "files" / self.digest / VERSION

    def recipe(self, max_errors: int) -> Recipe:
        """Returns how to write the shards and the metadata."""
        return Recipe(
            name=f"data set files/{self.digest} of split {self.split!r}",
            write_part=_write_part,
            finish=functools.partial(_finish, source=self.source),
            max_errors=max_errors,
        )

    def shards(self) -> dict[str, "_FilePart"]:
        """Returns the content of each shard, by file name.

        Raises:
            UserError: if the format of a file is unknown or has other fields, or a header of TSV is
                doubtful.
        """
        parts: list[Part] = []
        for path in self.paths:
            format = format_of(path, self.format)
            if format in ("lines", "document") and len(self.fields) != 1:
                raise UserError(
                    f"{path} is read as {format!r} and has one field, FileSource.fields has "
                    f"{len(self.fields)}: {', '.join(self.fields)}"
                )
            of_file = parts_of(path, format)
            columns = header_of(path, self.fields, self.header) if format == "tsv" else None
            if columns is not None:
                log.info("%s: the first line is a header: %s", path, ", ".join(columns))
            parts += [dataclasses.replace(part, columns=columns) for part in of_file]
        return {
            f"files-{self.split}.array_record-{number:05d}-of-{len(parts):05d}": _FilePart(
                part, self.fields, self.max_bytes
            )
            for number, part in enumerate(parts)
        }


@dataclasses.dataclass(frozen=True)
class _FilePart:
    """The content of one shard."""

    part: Part
    fields: tuple[str, ...]
    max_bytes: int


def _write_part(part: _FilePart, writer: ShardWriter) -> None:
    from tensorflow_datasets.core import example_serializer

    features = text_features(part.fields)
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


def text_features(fields: Sequence[str]) -> Any:
    """Returns the features of a data set of `FileSource`."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in fields})


def splits_of(folder: pathlib.Path, split: str, summaries: Mapping[str, Summary]) -> Any:
    """Returns the splits of a data set of `FileSource`, as TFDS slices them.

    NOTE: not read from TFDS's own `dataset_info.json`, which nothing checks.
    """
    import tensorflow_datasets as tfds

    info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[summary.records for summary in summaries.values()],
        num_bytes=add(summaries.values()).bytes,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="files", split=split, filetype_suffix="array_record"
        ),
    )
    return tfds.core.splits.SplitDict([info])


def _finish(
    folder: pathlib.Path, summaries: Mapping[str, Summary], *, source: Mapping[str, Any]
) -> None:
    """Writes the metadata that makes a folder of shards a TFDS data set."""
    import tensorflow_datasets as tfds

    split = source["split"]
    # The name of the data set promises the files as they were when they were looked up.
    for path, *rest in source["files"]:
        if list(stamp(path)) != [path, *rest]:
            raise UserError(f"{path} changed while it was read; run the command again")
    whole = add(summaries.values())
    if whole.records == 0:
        raise UserError(
            f"split {split!r} of FileSource must hold text, but it has no record; "
            f"{summary_text(whole)}"
        )
    with quiet():
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=text_features(source["fields"]),
            split_infos=list(splits_of(folder, split, summaries).values()),
            version=VERSION,
            description="Records of files.",
            check_data=False,
        )
    write_atomically(folder / SOURCE, json.dumps(source))

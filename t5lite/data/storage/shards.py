"""A shard of a data set: an array_record file and a note with its counts."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

from t5lite.core.counts import counted
from t5lite.core.errors import UserError
from t5lite.core.files import write_atomically
from t5lite.core.records import TEXT, Schema, integer, list_of, read_document

# Messages show this many bad rows.
SHOWN_ERRORS = 3

# The suffix of the note of a finished shard.
_NOTE = ".note"

# The summary of a folder; only complete folders have one.
SUMMARY = "summary.json"

SUMMARY_SCHEMA = Schema(
    required={
        "records": integer(0),
        "bytes": integer(0),
        "empty": integer(0),
        "bad": integer(0),
        "errors": list_of(TEXT),
        "digest": TEXT,
        "file_bytes": integer(0),
    },
    others=None,
)


@dataclasses.dataclass(frozen=True)
class Summary:
    """The content of a shard or of a folder of shards.

    Args:
        records: number of records.
        bytes: their size.
        empty: rows without text, which were left out.
        bad: rows that could not be read, which were left out.
        errors: the first bad rows, each with its file and line.
        digest: of all records.
        file_bytes: the size of the files.
    """

    records: int = 0
    bytes: int = 0
    empty: int = 0
    bad: int = 0
    errors: tuple[str, ...] = ()
    digest: str = ""
    file_bytes: int = 0


class ShardWriter:
    """Writes a shard and counts its records; `finish` moves the shard and its note in place."""

    def __init__(self, path: pathlib.Path, *, max_errors: int, compressed: bool) -> None:
        from array_record.python import array_record_module

        self._path = path
        self._unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        # One record per group: records are read one at a time.
        options = "group_size:1" if compressed else "group_size:1,uncompressed"
        self._writer = array_record_module.ArrayRecordWriter(str(self._unfinished), options)
        self._digest = hashlib.sha256()
        self._max_errors = max_errors
        self._records = self._bytes = self._empty = self._bad = 0
        self._errors: list[str] = []

    def write(self, record: bytes, *, identity: bytes | None = None) -> None:
        """Adds one record.

        Args:
            identity: bytes that identify the record, if its own bytes may vary.

        Raises:
            UserError: if the disk is full.
        """
        with self._write_errors():
            self._writer.write(record)
        identity = record if identity is None else identity
        self._digest.update(len(identity).to_bytes(8, "little"))
        self._digest.update(identity)
        self._records += 1
        self._bytes += len(record)

    def leave_out_empty(self) -> None:
        """Counts a row without text."""
        self._empty += 1

    def leave_out_bad(self, error: str) -> None:
        """Counts a row that cannot be read.

        Raises:
            UserError: if there are more of them than `max_errors`.
        """
        self._bad += 1
        self._errors = [*self._errors, error][:SHOWN_ERRORS]
        check_bad(Summary(bad=self._bad, errors=tuple(self._errors)), self._max_errors)

    def finish(self) -> Summary:
        """Closes the shard, which is final from now on."""
        with self._write_errors():
            self._writer.close()
        summary = Summary(
            records=self._records,
            bytes=self._bytes,
            empty=self._empty,
            bad=self._bad,
            errors=tuple(self._errors),
            digest=self._digest.hexdigest(),
            file_bytes=self._unfinished.stat().st_size,
        )
        # The note promises that the shard is on the disk.
        with self._unfinished.open("rb") as file:
            os.fsync(file.fileno())
        self._unfinished.replace(self._path)
        write_atomically(_note(self._path), json.dumps(dataclasses.asdict(summary)))
        return summary

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        # array_record raises nothing else.
        except RuntimeError as error:
            reason = "the disk is full" if "No space left" in str(error) else error
            raise UserError(
                f"{self._path.parent} cannot be written: {reason}; finished shards are kept: run "
                "the command again to resume"
            ) from error


def summaries_of(folder: pathlib.Path) -> dict[str, Summary]:
    """Returns the summaries of the shards in a folder of `build_shards`, by file name.

    Raises:
        UserError: if a note is damaged, a shard is missing or has another size, or the notes do not
            add up to the summary of the folder.
    """
    summaries = {}
    for note in sorted(folder.glob(f"*{_NOTE}")):
        shard = note.with_name(note.name.removesuffix(_NOTE))
        summary = read_summary(note)
        if not shard.exists() or shard.stat().st_size != summary.file_bytes:
            raise UserError(f"{shard} is damaged; delete {folder} to build it again")
        summaries[shard.name] = summary
    if (folder / SUMMARY).exists() and read_summary(folder / SUMMARY) != add(summaries.values()):
        raise UserError(
            f"{folder / SUMMARY} and the notes of the shards differ; delete {folder} to build it "
            "again"
        )
    return summaries


def summary_text(summary: Summary) -> str:
    """Returns a summary as text for messages."""
    text = f"{counted(summary.records, 'record')}, {counted(summary.bytes, 'byte')}"
    if summary.empty:
        text += f"; left out {counted(summary.empty, 'empty row')}"
    if summary.bad:
        bad = counted(summary.bad, "row")
        text += f"; left out {bad} that cannot be read: {'; '.join(summary.errors)}"
    return text


def check_bad(summary: Summary, max_errors: int) -> None:
    """Raises a UserError if there are more than `max_errors` bad rows."""
    if summary.bad > max_errors:
        raise UserError(
            f"more rows cannot be read than FileSource.max_errors ({max_errors:,}) allows: "
            f"{'; '.join(summary.errors)}; correct them or raise it"
        )


def add(summaries: Iterable[Summary]) -> Summary:
    """Returns the summary of several shards together."""
    summaries = list(summaries)
    digest = hashlib.sha256("".join(s.digest for s in summaries).encode())
    errors = [error for s in summaries for error in s.errors]
    return Summary(
        records=sum(s.records for s in summaries),
        bytes=sum(s.bytes for s in summaries),
        empty=sum(s.empty for s in summaries),
        bad=sum(s.bad for s in summaries),
        errors=tuple(errors[:SHOWN_ERRORS]),
        digest=digest.hexdigest(),
        file_bytes=sum(s.file_bytes for s in summaries),
    )


def _note(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}{_NOTE}")


def read_summary(path: pathlib.Path) -> Summary:
    """Reads the note of a shard, or the summary of a folder.

    Raises:
        UserError: if it is damaged.
    """
    remedy = f"delete {path.parent} to build it again"
    fields = read_document(path, SUMMARY_SCHEMA, remedy)
    return Summary(**{**fields, "errors": tuple(fields["errors"])})

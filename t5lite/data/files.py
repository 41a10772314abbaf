"""Records of files: text, JSONL, TSV and Parquet, compressed too, wherever fsspec can read.

A file is read in parts, so that one large file keeps several processes busy. A record is the text
of each wanted field; what cannot be read as one is reported with its file and line.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fsspec

from t5lite.core.errors import UserError, choose

# Of a file that can be read from the middle.
PART_BYTES = 64 << 20

Record = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Bad:
    """A row that is no record: where it is, and why it is none."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Part:
    """The records that begin in [start, stop) of one file: bytes, or row groups of Parquet."""

    path: str
    format: str
    start: int
    stop: int | None


def find_files(folder: str, pattern: str) -> list[str]:
    """Returns the files that a path or a pattern with wildcards names, in order.

    Raises:
        UserError: where there is none, or the file system is unknown or cannot be reached.
    """
    url = pattern if "://" in pattern or pattern.startswith("/") else f"{folder}/{pattern}"
    try:
        fs, path = fsspec.core.url_to_fs(url)
        # A name may hold what elsewhere is a wildcard.
        found = [path] if fs.isfile(path) else sorted(p for p in fs.glob(path) if fs.isfile(p))
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise UserError(f"files {url!r} cannot be had: {str(error).splitlines()[0]}") from error
    if not found:
        folder_there = "; it is a folder, name its files as in FOLDER/*" if fs.isdir(path) else ""
        raise UserError(f"there is no file {url!r}{folder_there}")
    return [fs.unstrip_protocol(p) if "://" in url else p for p in found]


def stamp(path: str) -> tuple[str, int, str]:
    """Returns address, bytes and time or tag of a file, which change when it is written anew."""
    fs, name = fsspec.core.url_to_fs(path)
    info = fs.info(name)
    known = ("mtime", "etag", "ETag", "updated", "LastModified", "created")
    tag = next((info[key] for key in known if key in info), None)
    if tag is None:
        with fs.open(name, "rb") as file:
            tag = hashlib.sha256(file.read(1 << 20)).hexdigest()
    return path, int(info["size"] or 0), str(tag)


def format_of(path: str) -> str:
    """Returns the format that the name of a file tells, compressed or not.

    >>> format_of("a/train-00.jsonl.gz"), format_of("b.txt"), format_of("c.parquet")
    ('jsonl', 'lines', 'parquet')
    """
    if fsspec.utils.infer_compression(path) == "zip":
        raise UserError(f"{path} is an archive of files; unpack it")
    suffix = _plain_name(path).rpartition(".")[2]
    known = {"txt": "lines", "jsonl": "jsonl", "json": "jsonl", "tsv": "tsv", "parquet": "parquet"}
    return choose(f"the format of {path!r} (FileSource.format)", suffix, known)


def _plain_name(path: str) -> str:
    compression = fsspec.utils.infer_compression(path)
    return path.rpartition(".")[0] if compression else path


def parts_of(path: str, format: str) -> list[Part]:
    """Returns the parts of a file; one that is compressed, or read as a whole, has a single one."""
    if format == "parquet":
        return [Part(path, format, n, n + 1) for n in range(_parquet(path).num_row_groups)]
    if format == "document" or _plain_name(path) != path:
        return [Part(path, format, 0, None)]
    fs, name = fsspec.core.url_to_fs(path)
    size = int(fs.info(name)["size"])
    starts = range(0, max(size, 1), PART_BYTES)
    return [Part(path, format, start, min(start + PART_BYTES, size)) for start in starts]


def read_part(
    part: Part, fields: Sequence[str], *, max_bytes: int
) -> Iterator[Record | Bad | None]:
    """Yields record after record; what is none as `Bad`; None for one without any text.

    Args:
        fields: those that are kept. For TSV the names of the columns in order.
        max_bytes: longer records of a single field are cut into several, at the end of a line
            where there is one.
    """
    for made in _records(part, tuple(fields)):
        if isinstance(made, Bad):
            yield made
        elif not any(text.strip() for text in made.values()):
            yield None
        elif len(fields) == 1 and len(next(iter(made.values()))) * 4 > max_bytes:
            yield from ({fields[0]: text} for text in cut(made[fields[0]], max_bytes))
        else:
            yield made


def _records(part: Part, fields: tuple[str, ...]) -> Iterator[Record | Bad]:
    with read_errors(part.path):
        yield from FORMATS[part.format](part, fields)


@contextlib.contextmanager
def read_errors(path: str) -> Iterator[None]:
    """Says on one line why a file cannot be read."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; mend it or leave it out"
        ) from error


def cut(text: str, max_bytes: int) -> Iterator[str]:
    r"""Yields pieces of at most `max_bytes` that together are the text.

    >>> list(cut("ab\ncdefgh", 4))
    ['ab\n', 'cdef', 'gh']
    """
    raw, start = text.encode(), 0
    while start < len(raw):
        end = start + max_bytes
        if end < len(raw):
            end = raw.rfind(b"\n", start, end) + 1 or _character_start(raw, end)
        yield raw[start:end].decode()
        start = end


def _character_start(text: bytes, at: int) -> int:
    """Moves `at` back to where a UTF-8 character begins."""
    while text[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _open(path: str) -> Any:
    fs, name = fsspec.core.url_to_fs(path)
    try:
        return fs.open(name, "rb", compression=fsspec.utils.infer_compression(path))
    except ValueError as error:
        raise UserError(
            f"{path} cannot be unpacked: {error}; install the package of its compression"
        ) from error


def _lines(part: Part) -> Iterator[bytes]:
    """Yields the lines that begin in the part, without their ends."""
    with _open(part.path) as file:
        at = _first_line(file, part.start)
        while part.stop is None or at < part.stop:
            line = file.readline()
            if not line:
                return
            at += len(line)
            yield line.rstrip(b"\r\n")


def _first_line(file: Any, start: int) -> int:
    """Moves on to the first line that begins at or behind `start`, and returns where that is."""
    if start == 0:
        return 0
    file.seek(start - 1)
    return int(start - 1 + len(file.readline()))


@functools.lru_cache(maxsize=16)
def _lines_before(part: Part) -> int:
    """Counts the lines before the part. Reads all of them, so only to report what is wrong."""
    with _open(part.path) as file:
        end, at, count = _first_line(file, part.start), 0, 0
        file.seek(0)
        while at < end:
            block = file.read(min(1 << 24, end - at))
            count, at = count + block.count(b"\n"), at + len(block)
    return count


def _bad(part: Part, number: int, reason: str) -> Bad:
    """Returns what is wrong with the line `number` of the part, counted from 0."""
    return Bad(f"{part.path}:{_lines_before(part) + number + 1}", reason)


def _texts(part: Part) -> Iterator[tuple[int, str] | Bad]:
    for number, line in enumerate(_lines(part)):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            yield _bad(part, number, f"no UTF-8 at byte {error.start} of the line")


def _read_lines(part: Part, fields: tuple[str, ...]) -> Iterator[Record | Bad]:
    for made in _texts(part):
        yield made if isinstance(made, Bad) else {fields[0]: made[1]}


def _read_document(part: Part, fields: tuple[str, ...]) -> Iterator[Record | Bad]:
    with _open(part.path) as file:
        raw = file.read()
    try:
        yield {fields[0]: raw.decode()}
    except UnicodeDecodeError as error:
        yield Bad(part.path, f"no UTF-8 at byte {error.start}")


def _read_jsonl(part: Part, fields: tuple[str, ...]) -> Iterator[Record | Bad]:
    for made in _texts(part):
        if isinstance(made, Bad):
            yield made
            continue
        number, line = made
        if not line.strip():
            yield dict.fromkeys(fields, "")
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield _bad(part, number, f"no JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield _bad(part, number, f"must be a JSON object, got {type(row).__name__}")
            continue
        record = _record(row, fields)
        yield record if isinstance(record, dict) else _bad(part, number, record)


def _read_tsv(part: Part, fields: tuple[str, ...]) -> Iterator[Record | Bad]:
    for made in _texts(part):
        if isinstance(made, Bad):
            yield made
            continue
        number, line = made
        columns = line.split("\t") if line else [""] * len(fields)
        if len(columns) == len(fields):
            yield dict(zip(fields, columns, strict=True))
        else:
            got = f"must have the {len(fields)} columns of FileSource.fields, got {len(columns)}"
            yield _bad(part, number, got)


def _read_parquet(part: Part, fields: tuple[str, ...]) -> Iterator[Record | Bad]:
    file = _parquet(part.path)
    known = [name for name in fields if name in file.schema_arrow.names]
    with _parquet_errors(part.path):
        table = file.read_row_group(part.start, columns=known)
    # As bytes, because one text that is no UTF-8 would make the whole column unreadable.
    columns = {name: _as_bytes(table[name]).to_pylist() for name in known}
    for number in range(table.num_rows):
        record = _record({name: values[number] for name, values in columns.items()}, fields)
        place = f"{part.path}: row {number} of row group {part.start}"
        yield record if isinstance(record, dict) else Bad(place, record)


def _parquet(path: str) -> Any:
    import pyarrow.parquet

    with _parquet_errors(path):
        return pyarrow.parquet.ParquetFile(_open(path))


@contextlib.contextmanager
def _parquet_errors(path: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise UserError(f"{path} must be Parquet: {str(error).splitlines()[0]}") from error


def _as_bytes(column: Any) -> Any:
    import pyarrow

    if pyarrow.types.is_string(column.type):
        return column.cast(pyarrow.binary())
    return (
        column.cast(pyarrow.large_binary())
        if pyarrow.types.is_large_string(column.type)
        else column
    )


def _record(row: dict[str, Any], fields: tuple[str, ...]) -> Record | str:
    """Returns the wanted fields as text, or what is wrong with them."""
    record = {}
    for name in fields:
        if name not in row:
            return f"no field {name!r}; it has {', '.join(map(str, row)) or 'none'}"
        value = row[name]
        if value is None:
            return f"field {name!r} is null"
        try:
            if not isinstance(value, str):
                value = value.decode() if isinstance(value, bytes) else json.dumps(value)
            value.encode()
        except UnicodeDecodeError as error:
            return f"field {name!r} is no UTF-8 at byte {error.start}"
        except UnicodeEncodeError:
            return f"field {name!r} holds half of a surrogate pair, which is no text"
        except TypeError:
            return f"field {name!r} is a {type(value).__name__}, which is no text"
        record[name] = value
    return record


Reader = Callable[[Part, tuple[str, ...]], Iterator[Record | Bad]]

FORMATS: dict[str, Reader] = {
    "lines": _read_lines,
    "document": _read_document,
    "jsonl": _read_jsonl,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
}

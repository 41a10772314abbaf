"""The formats of files: lines, documents, JSONL, TSV and Parquet.

A record is the text of each field of `FileSource.fields`; lists and objects are JSON. A row that
cannot be read is a `Bad` with its file and line.
"""

import codecs
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fsspec

from t5lite.core.json_values import decode_json, plain_value
from t5lite.data.sources import files
from t5lite.data.sources.files import (
    Bad,
    Part,
    is_compressed,
    open_file,
    read_errors,
    read_line,
    skip_rest,
    too_long,
)
from t5lite.data.sources.parquet import num_row_groups, read_rows, row_location
from t5lite.data.text.fields import Record, as_field


def parts_of(path: str, format: str) -> list[Part]:
    """Returns the parts of a file; a compressed file and a document have a single part."""
    if format == "parquet":
        return [Part(path, format, n, n + 1) for n in range(num_row_groups(path))]
    if format == "document" or is_compressed(path):
        return [Part(path, format, 0, None)]
    fs, name = fsspec.core.url_to_fs(path)
    size = int(fs.info(name)["size"])
    starts = range(0, max(size, 1), files.PART_BYTES)
    return [Part(path, format, start, min(start + files.PART_BYTES, size)) for start in starts]


def read_part(
    part: Part, fields: Sequence[str], *, max_bytes: int
) -> Iterator[Record | Bad | None]:
    """Yields a record, a `Bad`, or None for an empty row, for each row of a part.

    Args:
        fields: the fields to keep. For TSV without a header, the names of all columns in order.
        max_bytes: longer records of a single field are split, at the end of a line if possible.
    """
    with read_errors(part.path):
        for made in FORMATS[part.format](part, tuple(fields)):
            if isinstance(made, Bad):
                yield made
            elif not any(text.strip() for text in made.values()):
                yield None
            elif len(fields) == 1 and len(next(iter(made.values()))) * 4 > max_bytes:
                yield from ({fields[0]: text} for text in split_text(made[fields[0]], max_bytes))
            else:
                yield made


def split_text(text: str, max_bytes: int) -> Iterator[str]:
    r"""Yields pieces of at most `max_bytes` that concatenate to the text.

    >>> list(split_text("ab\ncdefgh", 4))
    ['ab\n', 'cdef', 'gh']
    """
    raw = text.encode()
    start = 0
    while start < len(raw):
        end = start + max_bytes
        if end < len(raw):
            end = raw.rfind(b"\n", start, end) + 1 or _character_start(raw, end)
        yield raw[start:end].decode()
        start = end


def _character_start(text: bytes, at: int) -> int:
    """Moves `at` back to the first byte of a UTF-8 character."""
    while text[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _lines(part: Part) -> Iterator[bytes | None]:
    """Yields the lines that begin in the part, without line ends; None for one that is too long.

    A line that is too long is yielded before the rest of it is read: a compressed file may hold any
    length.
    """
    with open_file(part.path) as file:
        at = _first_line(file, part.start)
        while part.stop is None or at < part.stop:
            line = read_line(file)
            if not line:
                return
            # Some editors write a byte-order mark.
            plain = line.removeprefix(codecs.BOM_UTF8) if at == 0 else line
            yield plain.rstrip(b"\r\n") if len(line) <= files.MAX_LINE_BYTES else None
            at += len(line) + skip_rest(file, line)


def _first_line(file: Any, start: int) -> int:
    """Moves to the first line that begins at or after `start`, and returns its position."""
    if start == 0:
        return 0
    file.seek(start - 1)
    line = read_line(file)
    return start - 1 + len(line) + skip_rest(file, line)


@functools.lru_cache(maxsize=16)
def _lines_before(part: Part) -> int:
    """Counts the lines before the part. It reads all of them, so only errors use it."""
    with open_file(part.path) as file:
        end = _first_line(file, part.start)
        at = 0
        count = 0
        file.seek(0)
        while at < end:
            block = file.read(min(1 << 24, end - at))
            count += block.count(b"\n")
            at += len(block)
    return count


def _bad(part: Part, number: int, reason: str) -> Bad:
    """Returns the error of line `number` of the part, counted from 0."""
    return Bad(f"{part.path}:{_lines_before(part) + number + 1}", reason)


def _texts(part: Part) -> Iterator[tuple[int, str] | Bad]:
    for number, line in enumerate(_lines(part)):
        if line is None:
            yield _bad(part, number, too_long(files.MAX_LINE_BYTES))
            continue
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            yield _bad(part, number, f"not UTF-8 at byte {error.start} of the line")


def _read_lines(part: Part, fields: tuple[str, ...]) -> Iterator[Record | Bad]:
    for made in _texts(part):
        yield made if isinstance(made, Bad) else {fields[0]: made[1]}


def _read_document(part: Part, fields: tuple[str, ...]) -> Iterator[Record | Bad]:
    most = files.MAX_DOCUMENT_BYTES
    with open_file(part.path) as file:
        # NOTE: `read(n)` takes n bytes of memory whatever the size of the file.
        raw = bytearray()
        while len(raw) <= most and (block := file.read(min(1 << 20, most + 1 - len(raw)))):
            raw += block
    if len(raw) > most:
        yield Bad(part.path, f"a document must have at most {most:,} bytes; read it as lines")
        return
    try:
        yield {fields[0]: raw.removeprefix(codecs.BOM_UTF8).decode()}
    except UnicodeDecodeError as error:
        yield Bad(part.path, f"not UTF-8 at byte {error.start}")


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
            row = decode_json(line)
        except ValueError as error:
            yield _bad(part, number, f"not JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield _bad(part, number, f"must be a JSON object, got {type(row).__name__}")
            continue
        record = _record(row, fields)
        yield record if isinstance(record, dict) else _bad(part, number, record)


def _read_tsv(part: Part, fields: tuple[str, ...]) -> Iterator[Record | Bad]:
    columns = part.columns or fields
    for made in _texts(part):
        if isinstance(made, Bad):
            yield made
            continue
        number, line = made
        if number == part.start == 0 and part.columns is not None:
            continue
        cells = line.split("\t") if line else [""] * len(columns)
        if len(cells) == len(columns):
            row = dict(zip(columns, cells, strict=True))
            yield {name: row[name] for name in fields}
        else:
            owner = "FileSource.fields" if part.columns is None else "the header"
            rule = f"must have the {len(columns)} columns of {owner}, got {len(cells)}"
            yield _bad(part, number, rule)


def _read_parquet(part: Part, fields: tuple[str, ...]) -> Iterator[Record | Bad]:
    for number, row in enumerate(read_rows(part, fields)):
        record = row if isinstance(row, Bad) else _record(row, fields)
        yield Bad(row_location(part, number), record) if isinstance(record, str) else record


def _record(row: dict[str, Any], fields: tuple[str, ...]) -> Record | str:
    """Returns the wanted fields as text, or what is wrong with the row."""
    record: Record = {}
    for name in fields:
        if name not in row:
            return f"no field {name!r}; it has {', '.join(map(str, row)) or 'none'}"
        if row[name] is None:
            return f"field {name!r} is null"
        try:
            value = as_field(plain_value(row[name]))
        except ValueError as error:
            return f"field {name!r} {error}"
        record[name] = value if isinstance(value, str) else json.dumps(value)
    return record


ReadFormat = Callable[[Part, tuple[str, ...]], Iterator[Record | Bad]]

FORMATS: dict[str, ReadFormat] = {
    "lines": _read_lines,
    "document": _read_document,
    "jsonl": _read_jsonl,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
}

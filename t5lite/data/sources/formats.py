"""Records of a part of a file: lines of text, whole documents, JSONL, TSV and Parquet.

A record is the text of each wanted field; what cannot be read as one is told with its file and
line.
"""

import codecs
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from t5lite.core.errors import UserError
from t5lite.data.sources.files import (
    Bad,
    Part,
    Record,
    open_file,
    parquet,
    parquet_errors,
    read_errors,
)


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


def _lines(part: Part) -> Iterator[bytes]:
    """Yields the lines that begin in the part, without their ends."""
    with open_file(part.path) as file:
        at = _first_line(file, part.start)
        while part.stop is None or at < part.stop:
            line = file.readline()
            if not line:
                return
            # A mark of the byte order, as some editors put first, is no text.
            plain = line.removeprefix(codecs.BOM_UTF8) if at == 0 else line
            at += len(line)
            yield plain.rstrip(b"\r\n")


def _first_line(file: Any, start: int) -> int:
    """Moves on to the first line that begins at or behind `start`, and returns where that is."""
    if start == 0:
        return 0
    file.seek(start - 1)
    return int(start - 1 + len(file.readline()))


@functools.lru_cache(maxsize=16)
def _lines_before(part: Part) -> int:
    """Counts the lines before the part. Reads all of them, so only to report what is wrong."""
    with open_file(part.path) as file:
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
    with open_file(part.path) as file:
        raw = file.read()
    try:
        yield {fields[0]: raw.removeprefix(codecs.BOM_UTF8).decode()}
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
        if number == part.start == 0 and columns == list(fields):
            # The names of the columns.
            yield dict.fromkeys(fields, "")
        elif len(columns) == len(fields):
            yield dict(zip(fields, columns, strict=True))
        else:
            got = f"must have the {len(fields)} columns of FileSource.fields, got {len(columns)}"
            yield _bad(part, number, got)


def _read_parquet(part: Part, fields: tuple[str, ...]) -> Iterator[Record | Bad]:
    file = parquet(part.path)
    names = file.schema_arrow.names
    for name in fields:
        if names.count(name) != 1:
            raise UserError(
                f"{part.path} must have one column {name!r} (FileSource.fields), got "
                f"{names.count(name)}; it has {', '.join(names)}"
            )
    with parquet_errors(part.path):
        table = file.read_row_group(part.start, columns=list(fields))
    # As bytes, because one text that is no UTF-8 would make the whole column unreadable.
    columns = {name: _as_bytes(table[name]).to_pylist() for name in fields}
    for number in range(table.num_rows):
        record = _record({name: values[number] for name, values in columns.items()}, fields)
        place = f"{part.path}: row {number} of row group {part.start}"
        yield record if isinstance(record, dict) else Bad(place, record)


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

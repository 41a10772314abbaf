"""Files on any file system of fsspec, and the parts that processes read in parallel."""

import contextlib
import dataclasses
import hashlib
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator
from typing import Any

import fsspec

from t5lite.core.errors import UserError, choose
from t5lite.core.files import is_utf8

# The size of a part of an uncompressed file.
PART_BYTES = 64 << 20

# Longer lines and documents are rejected before they fill the memory.
MAX_LINE_BYTES = 256 << 20
MAX_DOCUMENT_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Bad:
    """A row that cannot be read: its file and line, and the reason."""

    location: str
    reason: str

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Part:
    """The records that begin in [start, stop) of one file: bytes, or row groups of Parquet.

    Args:
        columns: for TSV, the names in the header line; None if there is no header.
    """

    path: str
    format: str
    start: int
    stop: int | None
    columns: tuple[str, ...] | None = None


def find_files(folder: str, pattern: str) -> list[str]:
    """Returns the files that match a path or a pattern with wildcards, in order.

    Raises:
        UserError: if no file matches, or the file system is unknown or unreachable.
    """
    url = pattern if "://" in pattern or pattern.startswith("/") else f"{folder}/{pattern}"
    try:
        fs, path = fsspec.core.url_to_fs(url)
        # A file name may contain wildcard characters.
        found = [path] if fs.isfile(path) else sorted(p for p in fs.glob(path) if fs.isfile(p))
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise UserError(f"cannot read files {url!r}: {str(error).splitlines()[0]}") from error
    for each in found:
        if not is_utf8(each):
            raise UserError(f"names of files must be UTF-8, got {each!r}; rename it")
    if not found:
        remedy = "; it is a folder, name its files as in FOLDER/*" if fs.isdir(path) else ""
        raise UserError(f"no file matches {url!r}{remedy}")
    return [fs.unstrip_protocol(p) if "://" in url else p for p in found]


def stamp(path: str) -> tuple[str, int, str]:
    """Returns the address, size and time or tag of a file, which change when it is rewritten."""
    fs, name = fsspec.core.url_to_fs(path)
    info = fs.info(name)
    known = ("mtime", "etag", "ETag", "updated", "LastModified", "created")
    tag = next((info[key] for key in known if key in info), None)
    if tag is None:
        with fs.open(name, "rb") as file:
            tag = hashlib.sha256(file.read(1 << 20)).hexdigest()
    return path, int(info["size"] or 0), str(tag)


def format_of(path: str, given: str | None = None) -> str:
    """Returns the format of a file: `given`, or the one that its name implies.

    >>> format_of("a/train-00.jsonl.gz"), format_of("b.txt"), format_of("c.parquet")
    ('jsonl', 'lines', 'parquet')

    Raises:
        UserError: if the name implies no format, or an archive of several files.
    """
    names = path, _plain_name(path)
    if any(re.search(r"\.(zip|tar|tgz|tbz2?|txz)$", name) for name in names):
        raise UserError(f"{path} is an archive of files; unpack it")
    if given is not None:
        return given
    suffix = _plain_name(path).rpartition(".")[2]
    known = {"txt": "lines", "jsonl": "jsonl", "json": "jsonl", "tsv": "tsv", "parquet": "parquet"}
    return choose(f"the format of {path!r} (FileSource.format)", suffix, known)


def is_compressed(path: str) -> bool:
    """Returns whether the name of a file has the suffix of a compression."""
    return fsspec.utils.infer_compression(path) is not None


def _plain_name(path: str) -> str:
    return path.rpartition(".")[0] if is_compressed(path) else path


@contextlib.contextmanager
def read_errors(path: str) -> Iterator[None]:
    """Turns the errors of reading a file into a UserError on one line."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; repair it or remove it"
        ) from error


def open_file(path: str) -> Any:
    """Opens a file for reading, and decompresses it if its name has a suffix such as .gz.

    Raises:
        UserError: if the package for its compression is missing.
    """
    fs, name = fsspec.core.url_to_fs(path)
    try:
        return fs.open(name, "rb", compression=fsspec.utils.infer_compression(path))
    except ValueError as error:
        raise UserError(
            f"{path} cannot be decompressed: {error}; install the package for its compression"
        ) from error


def read_line(file: Any) -> bytes:
    """Returns the next line; of one of more than `MAX_LINE_BYTES` one byte more than that."""
    line: bytes = file.readline(MAX_LINE_BYTES + 1)
    return line


def skip_rest(file: Any, line: bytes) -> int:
    """Reads the rest of a line of which `read_line` returned the beginning; returns its length."""
    length = 0
    block = line
    while len(line) > MAX_LINE_BYTES and block and not block.endswith(b"\n"):
        block = file.readline(1 << 20)
        length += len(block)
    return length


def read_lines(file: Any, path: str) -> Iterator[bytes]:
    """Yields the lines of a file with their line ends.

    Raises:
        UserError: for a line of more than `MAX_LINE_BYTES`, naming `path`.
    """
    for number in itertools.count(1):
        line = read_line(file)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"{path}:{number}: {too_long(MAX_LINE_BYTES)}")
        yield line


def too_long(most: int) -> str:
    """Returns what is wrong with a line of more than `most` bytes."""
    return f"a line must have at most {most:,} bytes"

"""Files wherever fsspec can read them, and the parts they are read in.

One large file has several parts, so that it keeps several processes busy.
"""

import contextlib
import dataclasses
import hashlib
import lzma
import re
import zlib
from collections.abc import Iterator
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


def format_of(path: str, given: str | None = None) -> str:
    """Returns the format of a file: what is `given`, or its name tells, compressed or not.

    >>> format_of("a/train-00.jsonl.gz"), format_of("b.txt"), format_of("c.parquet")
    ('jsonl', 'lines', 'parquet')

    Raises:
        UserError: where its name tells none, or an archive of several files.
    """
    names = path, _plain_name(path)
    if any(re.search(r"\.(zip|tar|tgz|tbz2?|txz)$", name) for name in names):
        raise UserError(f"{path} is an archive of files; unpack it")
    if given is not None:
        return given
    suffix = _plain_name(path).rpartition(".")[2]
    known = {"txt": "lines", "jsonl": "jsonl", "json": "jsonl", "tsv": "tsv", "parquet": "parquet"}
    return choose(f"the format of {path!r} (FileSource.format)", suffix, known)


def _plain_name(path: str) -> str:
    compression = fsspec.utils.infer_compression(path)
    return path.rpartition(".")[0] if compression else path


def parts_of(path: str, format: str) -> list[Part]:
    """Returns the parts of a file; one that is compressed, or read as a whole, has a single one."""
    if format == "parquet":
        return [Part(path, format, n, n + 1) for n in range(parquet(path).num_row_groups)]
    if format == "document" or _plain_name(path) != path:
        return [Part(path, format, 0, None)]
    fs, name = fsspec.core.url_to_fs(path)
    size = int(fs.info(name)["size"])
    starts = range(0, max(size, 1), PART_BYTES)
    return [Part(path, format, start, min(start + PART_BYTES, size)) for start in starts]


@contextlib.contextmanager
def read_errors(path: str) -> Iterator[None]:
    """Says on one line why a file cannot be read."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; mend it or leave it out"
        ) from error


def open_file(path: str) -> Any:
    """Opens a file for reading, unpacked where its name says that it is compressed.

    Raises:
        UserError: where the package for its compression is not there.
    """
    fs, name = fsspec.core.url_to_fs(path)
    try:
        return fs.open(name, "rb", compression=fsspec.utils.infer_compression(path))
    except ValueError as error:
        raise UserError(
            f"{path} cannot be unpacked: {error}; install the package of its compression"
        ) from error


def parquet(path: str) -> Any:
    """Opens a Parquet file.

    Raises:
        UserError: where it is none.
    """
    import pyarrow.parquet

    with parquet_errors(path):
        return pyarrow.parquet.ParquetFile(open_file(path))


@contextlib.contextmanager
def parquet_errors(path: str) -> Iterator[None]:
    """Says on one line why a Parquet file cannot be read."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise UserError(f"{path} must be Parquet: {str(error).splitlines()[0]}") from error

"""Checksums of the files of a checkpoint, which are checked before anything of them is parsed.

The large files contain arrays alone, which have checksums of their own: here they have a size.
"""

import pathlib
import zlib
from collections.abc import Mapping

# Of the largest file that has a checksum: reading it takes a millisecond.
MAX_CHECKED_BYTES = 1 << 20

# Size in bytes, and CRC-32 if the file has one.
FileChecksum = tuple[int, int | None]


def file_checksums(folder: pathlib.Path) -> dict[str, FileChecksum]:
    """Returns the checksum of every file in a folder, by its path in the folder."""
    return {
        path.relative_to(folder).as_posix(): _checksum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_files(folder: pathlib.Path, expected: Mapping[str, FileChecksum]) -> None:
    """Checks the files of a folder; others than the expected ones are ignored.

    Raises:
        ValueError: naming the first file that is missing or differs.
    """
    for name, (size, crc) in expected.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if (got := path.stat().st_size) != size:
            raise ValueError(f"{name} has {got:,} bytes instead of {size:,}")
        if crc is not None and zlib.crc32(path.read_bytes()) != crc:
            raise ValueError(f"{name} has another checksum than when it was written")


def _checksum(path: pathlib.Path) -> FileChecksum:
    size = path.stat().st_size
    return size, zlib.crc32(path.read_bytes()) if size <= MAX_CHECKED_BYTES else None

"""`checkpoints/STEP/checksums`: what everything else of a checkpoint must be like.

It is an item of Orbax, written last, before the directory gets its final name.
"""

import dataclasses
import json
import os
import pathlib
import time
import zlib
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp

from t5lite.training.array_checksums import ArrayChecksum
from t5lite.training.file_checksums import FileChecksum, file_checksums

CHECKSUMS = "checksums"
_FILE = "checksums.jsonl"
CHECKSUMS_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Checksums:
    """The checksums of a checkpoint.

    Args:
        saved_at: the time of saving in nanoseconds.
        arrays: of the state, by name.
        files: of all other items, by path.
    """

    saved_at: int
    arrays: Mapping[str, ArrayChecksum]
    files: Mapping[str, FileChecksum]


def checksums_file(checkpoint: pathlib.Path) -> pathlib.Path:
    """Returns the file of the checksums of a checkpoint."""
    return checkpoint / CHECKSUMS / _FILE


def read_checksums(checkpoint: pathlib.Path) -> Checksums:
    """Reads the checksums of a checkpoint.

    Raises:
        ValueError: if the file is damaged.
        OSError: if it cannot be read.
    """
    path = checksums_file(checkpoint)
    head, _, content = path.read_bytes().partition(b"\n")
    # Checked first: what has the right checksum also has the right form.
    if head != _head(content):
        raise ValueError(f"{CHECKSUMS}/{_FILE} is damaged, or of a later version")
    fields = json.loads(content)
    return Checksums(
        saved_at=fields["saved_at"],
        arrays={
            name: ArrayChecksum(tuple(shape), dtype, value)
            for name, (shape, dtype, value) in fields["arrays"].items()
        },
        files={name: (size, crc) for name, (size, crc) in fields["files"].items()},
    )


def _head(content: bytes) -> bytes:
    """Returns the first line of the file: its version, and the CRC-32 of the rest."""
    return json.dumps({"version": CHECKSUMS_VERSION, "crc32": zlib.crc32(content)}).encode()


class ChecksumsHandler(ocp.AsyncCheckpointHandler):
    """Writes the item. Register it after the others: Orbax finalizes them in this order."""

    async def async_save(self, directory: Any, args: "ChecksumsSave") -> None:
        """Keeps the checksums of the arrays until all files are written."""
        self._arrays = args.arrays

    def save(self, directory: Any, args: "ChecksumsSave") -> None:
        """Does the same."""
        self._arrays = args.arrays

    def finalize(self, directory: Any) -> None:
        """Writes the checksums of the arrays and of the files of the other items."""
        checkpoint = pathlib.Path(directory).parent
        files = {
            f"{item.name}/{name}": checksum
            for item in sorted(checkpoint.iterdir())
            if item.is_dir() and item.name != pathlib.Path(directory).name
            for name, checksum in file_checksums(item).items()
        }
        content = json.dumps(
            {
                "saved_at": time.time_ns(),
                "arrays": {name: dataclasses.astuple(a) for name, a in self._arrays.items()},
                "files": files,
            }
        ).encode()
        with (pathlib.Path(directory) / _FILE).open("wb") as file:
            file.write(_head(content) + b"\n" + content)
            file.flush()
            os.fsync(file.fileno())

    def restore(self, directory: Any, args: "ChecksumsRestore | None" = None) -> Checksums:
        """Reads the item."""
        return read_checksums(pathlib.Path(directory).parent)


@ocp.args.register_with_handler(ChecksumsHandler, for_save=True)
@dataclasses.dataclass
class ChecksumsSave(ocp.args.CheckpointArgs):
    """What is known when a save begins.

    Args:
        arrays: by name; may be filled until the arrays are written.
    """

    arrays: Mapping[str, ArrayChecksum]


@ocp.args.register_with_handler(ChecksumsHandler, for_restore=True)
@dataclasses.dataclass
class ChecksumsRestore(ocp.args.CheckpointArgs):
    """Orbax needs a class for arguments of reading; there are none."""

"""Local text files as a TFDS data set: read once, then random access from array_record."""

import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from t5lite.core.errors import UserError

RECORDS = ("line", "file")


# Not frozen, because the class it extends is not.
@dataclasses.dataclass(eq=False)
class TextFilesConfig(tfds.core.BuilderConfig):
    """What a data set is made from; its name is a digest of all of it.

    Args:
        files: for each split the files in order.
        record: what one example is, a "line" without its end or a whole "file".
        max_bytes: longer examples are cut there, at the end of a line where there is one.
    """

    files: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    record: str = "line"
    max_bytes: int = 65536


def text_files_config(
    files: Mapping[str, Any], folder: str, record: str, max_bytes: int
) -> TextFilesConfig:
    """Returns the config for files named by paths or glob patterns, split by split.

    Raises:
        UserError: for a pattern without files, an unknown kind of record or a limit under 4 bytes,
            the longest character.
    """
    if record not in RECORDS:
        raise UserError(f"TextSource.record must be one of {RECORDS}, got {record!r}")
    if max_bytes < 4:
        raise UserError(f"TextSource.max_bytes must be at least 4 bytes, got {max_bytes}")
    found: dict[str, tuple[str, ...]] = {}
    for split, patterns in files.items():
        patterns = [patterns] if isinstance(patterns, str) else patterns
        paths = [path for pattern in patterns for path in _matches(split, folder, pattern)]
        found[split] = tuple(map(str, paths))
    stamps = {
        split: [_stamp(pathlib.Path(path)) for path in paths] for split, paths in found.items()
    }
    identity = json.dumps([stamps, record, max_bytes]).encode()
    name = hashlib.sha256(identity).hexdigest()[:16]
    return TextFilesConfig(name=name, files=found, record=record, max_bytes=max_bytes)


def _matches(split: str, folder: str, pattern: str) -> list[pathlib.Path]:
    path = pathlib.Path(folder).expanduser() / pattern
    paths = sorted(p for p in path.parent.glob(path.name) if p.is_file())
    if not paths:
        raise UserError(f"TextSource.files[{split!r}]: there is no file {str(path)!r}")
    return paths


def _stamp(path: pathlib.Path) -> tuple[str, int, int]:
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def records_of(file: io.BufferedIOBase, *, record: str, max_bytes: int) -> Iterator[bytes]:
    r"""Yields the examples of one file in order; empty lines are no examples.

    With `record="file"` they are pieces of at most `max_bytes` that together are the file.

    >>> import io
    >>> list(records_of(io.BytesIO(b"ab\n\ncd"), record="line", max_bytes=8))
    [b'ab', b'cd']
    >>> list(records_of(io.BytesIO(b"ab\ncdefgh"), record="file", max_bytes=4))
    [b'ab\n', b'cdef', b'gh']
    """
    pieces = (line.rstrip(b"\r\n") for line in file) if record == "line" else [file.read()]
    for piece in pieces:
        start = 0
        while start < len(piece):
            end = start + max_bytes
            if end < len(piece):
                line_end = piece.rfind(b"\n", start, end) + 1
                end = line_end or _character_start(piece, end)
            yield piece[start:end]
            start = end


def _character_start(text: bytes, at: int) -> int:
    """Moves `at` back to where a UTF-8 character begins, by 3 bytes at most."""
    for start in range(at, at - 4, -1):
        if text[start] & 0xC0 != 0x80:
            return start
    return at


class TextFiles(tfds.core.GeneratorBasedBuilder):
    """Examples with the one field `text`, in the order of the files."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: list[Any] = []

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Local text files.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            # Keys are counted, so that a pass over a split reads the text in its order.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # Nothing is downloaded.
        files = self.builder_config.files
        return {split: self._generate_examples(paths) for split, paths in files.items()}

    def _generate_examples(self, paths: tuple[str, ...]) -> Iterator[tuple[int, dict[str, bytes]]]:
        config = self.builder_config
        count = 0
        for path in paths:
            with open(path, "rb") as file:
                for text in records_of(file, record=config.record, max_bytes=config.max_bytes):
                    yield count, {"text": text}
                    count += 1
        if count == 0:
            raise UserError(f"TextSource.files must hold text, but there is none in {paths}")

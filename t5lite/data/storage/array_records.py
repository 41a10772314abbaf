"""The records of array_record files, by number.

NOTE: array_record's own data source takes time proportional to the number of records in the file
to read one of them. Reading a range of one record takes constant time.
"""

import bisect
import contextlib
import functools
import itertools
import resource
from collections.abc import Sequence
from typing import Any

from t5lite.core.errors import UserError

# (path, records to skip, records to take)
Shard = tuple[str, int, int]


class ArrayRecords:
    """The records of several shards in a row, as bytes.

    Files are opened when they are first read, in each process separately.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = [shard for shard in shards if shard[2]]
        self._ends = list(itertools.accumulate(take for _, _, take in self._shards))
        self._readers: list[Any] = [None] * len(self._shards)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        at = index - (self._ends[shard - 1] if shard else 0) + self._shards[shard][1]
        reader = self._readers[shard] or self._open(shard)
        try:
            records: list[bytes] = reader.read(at, at + 1)
        # array_record raises nothing else.
        except RuntimeError as error:
            raise _damaged(self._shards[shard][0], str(error).splitlines()[0]) from error
        return records[0]

    def _open(self, shard: int) -> Any:
        from array_record.python import array_record_module

        _allow_files()
        path, skip, take = self._shards[shard]
        reader = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")
        if (got := reader.num_records()) < skip + take:
            try:
                open(path, "rb").close()
            # array_record does not report the reason.
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from error
            raise _damaged(path, f"it must have at least {skip + take} records, got {got}")
        self._readers[shard] = reader
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": [None] * len(self._shards)}


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path} is damaged: {reason}; delete its folder to build it again")


@functools.cache
def _allow_files() -> None:
    """Raises the limit of open files of this process as far as possible: shards stay open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems without a limit reject the call.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

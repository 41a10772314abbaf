"""Checksums of the arrays of a tree, the same however they are split over devices and processes.

Every process sums up the parts that it holds, see `element_sums`, and all of them exchange the
sums.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.core.lazy import by_name
from t5lite.training.element_sums import MODULUS, host_sums, part_sums

# A part of an array, the position of its first element, and the shape of the array.
_Part = tuple[Any, tuple[int, ...], tuple[int, ...]]
# Threads cost more than they save for less; NumPy works in several at a time.
_THREADED_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class ArrayChecksum:
    """The checksum of an array.

    Args:
        shape, dtype: of the array.
        value: 16 hexadecimal digits.
    """

    shape: tuple[int, ...]
    dtype: str
    value: str


def array_checksums(tree: Any) -> dict[str, ArrayChecksum]:
    """Returns the checksum of every array of a tree by name; all processes must call it."""
    arrays = by_name(tree)
    sums = _gathered([_local_parts(array, copies=False) for array in arrays.values()])
    checksums: dict[str, ArrayChecksum] = {}
    for (name, array), of_processes in zip(arrays.items(), sums, strict=True):
        # An array that a process holds as a whole is whole there, and may be its own.
        whole = of_processes[of_processes[:, 0] == _num_parts(array), 1:]
        words = whole[0] if len(whole) else of_processes[:, 1:].sum(axis=0) % MODULUS
        checksums[name] = ArrayChecksum(tuple(array.shape), str(array.dtype), _text(words))
    return checksums


def differing_arrays(tree: Any, expected: Mapping[str, ArrayChecksum]) -> list[str]:
    """Returns the names of the arrays that do not have the expected checksums.

    Every process checks its own copies; the result is the same in all of them. All processes must
    call it.
    """
    arrays = by_name(tree)
    sums = _gathered([_local_parts(array, copies=True) for array in arrays.values()])
    return [
        name
        for (name, array), of_processes in zip(arrays.items(), sums, strict=True)
        if not _fits(of_processes, _num_parts(array), expected[name].value)
    ]


def host_checksum(values: np.ndarray) -> ArrayChecksum:
    """Returns the checksum of an array in the memory of this process."""
    sums = host_sums(values, (0,) * values.ndim, values.shape)
    return ArrayChecksum(tuple(values.shape), str(values.dtype), _text(sums))


def _text(words: Sequence[Any] | np.ndarray) -> str:
    return "".join(f"{int(word):08x}" for word in words)


def _fits(of_processes: np.ndarray, num_parts: int, expected: str) -> bool:
    words = np.array([int(expected[:8], 16), int(expected[8:], 16)], np.uint64)
    is_whole = of_processes[:, 0] == num_parts
    if not (of_processes[is_whole, 1:] == words).all():
        return False
    # What the other processes hold is a whole number of copies together.
    parts = of_processes[~is_whole]
    copies, rest = divmod(int(parts[:, 0].sum()), num_parts)
    same = parts[:, 1:].sum(axis=0) % MODULUS == words * np.uint64(copies) % MODULUS
    return not rest and bool(same.all())


def _gathered(arrays: Sequence[Sequence[_Part]]) -> np.ndarray:
    """Returns number of parts and the two sums, uint64 [arrays, processes, 3].

    Args:
        arrays: the parts of each array that this process holds.
    """
    parts = [part for of_array in arrays for part in of_array]
    if sum(values.nbytes for values, _, _ in parts) < _THREADED_BYTES:
        sums = [part_sums(*part) for part in parts]
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sums = list(pool.map(lambda part: part_sums(*part), parts))
    # One transfer for all arrays.
    words = iter(jax.device_get(sums))
    own = np.zeros((len(arrays), 3), np.uint32)
    for row, of_array in zip(own, arrays, strict=True):
        row[0] = len(of_array)
        for _ in of_array:
            row[1:] += np.array(next(words), np.uint32)
    if jax.process_count() == 1:
        return own[:, None].astype(np.uint64)
    return np.moveaxis(multihost_utils.process_allgather(own), 0, 1).astype(np.uint64)


def _local_parts(array: Any, *, copies: bool) -> list[_Part]:
    """Returns the distinct parts of an array in this process.

    Args:
        copies: whether to return a part of which another process returns a copy.
    """
    if not isinstance(array, jax.Array):
        return [(np.asarray(array), (0,) * np.ndim(array), np.shape(array))]
    parts: dict[tuple[int, ...], jax.Array] = {}
    for shard in array.addressable_shards:
        if copies or shard.replica_id == 0:
            parts.setdefault(tuple(part.start or 0 for part in shard.index), shard.data)
    return [(part, starts, array.shape) for starts, part in parts.items()]


def _num_parts(array: Any) -> int:
    """Returns the number of distinct parts of an array over all processes."""
    if not isinstance(array, jax.Array) or not array.size:
        return 1
    return array.size // math.prod(array.sharding.shard_shape(array.shape))

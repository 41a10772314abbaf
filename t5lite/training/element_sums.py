"""The two sums that form the checksum of an array, of any part of it, on the host or on a device.

Every element is mixed with its position in the whole array. The first sum is that of the mixed
values, the second one is weighted by the odd keys of the positions, both modulo 2**32. So the
sums of the parts of an array add up to those of the whole, however it is split.

A change of one element always changes the sums; any other change is missed with a probability of
about 2**-63.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MODULUS = 1 << 32
# Twice the golden ratio times 2**32: keys are odd, and those of neighbours differ in all bits.
_SPREAD = 0x9E3779B9 * 2 % MODULUS
_FIRST_KEY = 1
# Of the integer hash "lowbias32" by C. Wellons.
_FACTORS = (0x21F0AAAD, 0x735A2D97)
_SHIFTS = (16, 15, 15)
# Elements whose intermediate values fit into the cache of a core; with fewer, threads would
# mostly wait for each other.
_BLOCK = 1 << 17
# Elements of the blocks that programs for CPUs sum up, largest first: so they serve arrays of all
# shapes. NumPy takes what is left.
_PROGRAM_SIZES = (1 << 22, 1 << 20, 1 << 18, 1 << 16)
_SLICES = 8
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def part_sums(part: Any, starts: Sequence[int], shape: Sequence[int]) -> Any:
    """Returns the two sums of a part of an array that one device holds.

    Args:
        part: a JAX array on one device or in the memory of its host, or a NumPy array.
        starts: the position of its first element in each dimension.
        shape: of the whole array.
    """
    if not isinstance(part, jax.Array):
        return host_sums(part, starts, shape)
    (device,) = part.devices()
    if device.platform == "cpu" or part.dtype.itemsize not in _UNSIGNED:
        return host_sums(np.asarray(part), starts, shape, compiled=device.platform == "cpu")
    return device_sums(jax.device_put(part, device), starts, shape)


def device_sums(part: jax.Array, starts: Sequence[int], shape: Sequence[int]) -> jax.Array:
    """Returns the sums as `host_sums` does, computed on the device of `part`, uint32 [2]."""
    steps = _key_steps(shape)
    first = _key_of(starts, steps)
    return _compiled_sums(part, np.array(steps, np.uint32), np.uint32(first))


@jax.jit
def _compiled_sums(part: jax.Array, steps: Any, first: Any) -> jax.Array:
    if part.dtype == jnp.bool_:
        part = part.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(part, _UNSIGNED[part.dtype.itemsize])
    keys = jnp.full(part.shape, first, jnp.uint32)
    for dimension in range(part.ndim):
        along = jax.lax.broadcasted_iota(jnp.uint32, part.shape, dimension)
        keys += along * steps[dimension]
    mixed = _mix(bits.astype(jnp.uint32), keys)
    return jnp.stack([jnp.sum(each, dtype=jnp.uint32) for each in (mixed, mixed * keys)])


@jax.jit
def _block_sums(words: jax.Array, first: Any) -> jax.Array:
    """Returns the sums of consecutive elements, fast on CPUs.

    Args:
        words: their bits; a multiple of `_SLICES`.
        first: the key of the first element.
    """
    length = words.shape[0] // _SLICES
    along = first + jax.lax.iota(jnp.uint32, length) * np.uint32(_SPREAD)
    total = weighted = jnp.zeros(length, jnp.uint32)
    # Slices are added elementwise and both sums are reduced at once: the compiler makes it one
    # pass of vector instructions, which two sums of all elements are not.
    for index in range(_SLICES):
        keys = along + np.uint32(index * length * _SPREAD % MODULUS)
        mixed = _mix(words[index * length :][:length].astype(jnp.uint32), keys)
        total += mixed
        weighted += mixed * keys
    zero = np.uint32(0)
    sums = jax.lax.reduce(
        (total, weighted),
        (zero, zero),
        lambda some, others: (some[0] + others[0], some[1] + others[1]),
        (0,),
    )
    return jnp.stack(sums)


def host_sums(
    values: np.ndarray, starts: Sequence[int], shape: Sequence[int], *, compiled: bool = False
) -> tuple[int, int]:
    """Returns the two sums of a part of an array.

    Args:
        values: the part.
        starts: the position of its first element in each dimension.
        shape: of the whole array.
        compiled: whether jax computes on CPUs, so that its programs can sum up most elements.

    >>> whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    >>> parts = [host_sums(whole[:, :1], (0, 0), (2, 3)), host_sums(whole[:, 1:], (0, 1), (2, 3))]
    >>> host_sums(whole, (0, 0), (2, 3)) == tuple(sum(words) % MODULUS for words in zip(*parts))
    True
    """
    words = np.ascontiguousarray(values).reshape(values.shape or (1,))
    starts = list(starts) or [0]
    shape = list(shape) or [1]
    size = words.dtype.itemsize
    if size not in _UNSIGNED:
        starts[-1] *= size // 4
        shape[-1] *= size // 4
    words = words.view(_UNSIGNED.get(size, np.uint32))
    # Trailing dimensions that the part has as a whole are one line of elements.
    line = len(shape) - 1
    while line and (words.shape[line], starts[line]) == (shape[line], 0):
        line -= 1
    steps = _key_steps(shape)
    first = _key_of(starts, steps)
    keys = np.full(words.shape[:line], first, np.uint32)
    for dimension in range(line):
        along = np.arange(words.shape[dimension], dtype=np.uint32) * np.uint32(steps[dimension])
        keys += along.reshape([-1 if d == dimension else 1 for d in range(line)])
    lines = words.reshape(keys.size, math.prod(words.shape[line:]))
    first_keys = keys.reshape(-1)
    columns, sums = _sums_by_programs(lines, first_keys) if compiled else (0, [])
    rest_keys = first_keys + np.uint32(columns * _SPREAD % MODULUS)
    sums.append(_sums_of_lines(lines[:, columns:], rest_keys))
    total, weighted = (
        sum(int(word) for word in words) % MODULUS for words in zip(*sums, strict=True)
    )
    return total, weighted


def _sums_by_programs(words: np.ndarray, first_keys: np.ndarray) -> tuple[int, list[Any]]:
    """Returns the two sums of blocks of elements, and how many elements of each line they cover.

    Args:
        words: the bits of the elements, one line a row.
        first_keys: of the first element of each line.
    """
    column = 0
    sums = []
    for size in _PROGRAM_SIZES:
        while words.shape[1] - column >= size:
            for line, key in zip(words, first_keys, strict=True):
                first = np.uint32((int(key) + column * _SPREAD) % MODULUS)
                sums.append(_block_sums(line[column : column + size], first))
            column += size
    return column, jax.device_get(sums) if sums else []


def _sums_of_lines(words: np.ndarray, first_keys: np.ndarray) -> tuple[int, int]:
    """Returns the two sums of lines of elements, block by block.

    Args:
        words: the bits of the elements, one line a row.
        first_keys: of the first element of each line.
    """
    num_lines, length = words.shape
    columns = max(1, min(length, _BLOCK))
    lines = max(1, min(num_lines, _BLOCK // columns))
    along = np.arange(columns, dtype=np.uint32) * np.uint32(_SPREAD)
    buffers = np.empty((3, lines, columns), np.uint32)
    total = 0
    weighted = 0
    for line in range(0, num_lines, lines):
        for column in range(0, length, columns):
            block = words[line : line + lines, column : column + columns]
            keys, mixed, shifted = buffers[:, : block.shape[0], : block.shape[1]]
            starts = first_keys[line : line + lines] + np.uint32(column * _SPREAD % MODULUS)
            np.add(starts[:, None], along[: block.shape[1]], out=keys)
            np.bitwise_xor(block, keys, out=mixed)
            # As `_mix`, in place.
            for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
                np.right_shift(mixed, shift, out=shifted)
                np.bitwise_xor(mixed, shifted, out=mixed)
                if factor != 1:
                    np.multiply(mixed, np.uint32(factor), out=mixed)
            total += int(mixed.sum(dtype=np.uint32))
            np.multiply(mixed, keys, out=mixed)
            weighted += int(mixed.sum(dtype=np.uint32))
    return total % MODULUS, weighted % MODULUS


def _key_steps(shape: Sequence[int]) -> list[int]:
    """Returns by how much the key of an element grows along each dimension."""
    strides = [math.prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
    return [stride * _SPREAD % MODULUS for stride in strides]


def _key_of(position: Sequence[int], steps: Sequence[int]) -> int:
    """Returns the key of an element, an odd number for each position."""
    pairs = zip(position, steps, strict=True)
    return (_FIRST_KEY + sum(index * step for index, step in pairs)) % MODULUS


def _mix(bits: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns a hash of bits and keys."""
    mixed = bits ^ keys
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    return mixed

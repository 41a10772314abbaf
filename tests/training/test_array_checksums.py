import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.training import element_sums
from t5lite.training.array_checksums import (
    _fits,
    array_checksums,
    differing_arrays,
    host_checksum,
)
from t5lite.training.element_sums import device_sums, host_sums

SHAPES = [(), (1,), (7,), (3, 5), (4, 1, 9), (2, 40_000), (40_000, 2), (0, 3)]
DTYPES = ["float32", "bfloat16", "int32", "uint8", "bool", "float8_e4m3fn"]


def random_values(rng, shape, dtype):
    return np.asarray(rng.standard_normal(shape) * 100).astype(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_device_and_host_compute_the_same_sums(dtype, rng):
    for shape in [(), (7,), (3, 5), (2, 40_000)]:
        values = random_values(rng, shape, dtype)
        # Of a part in the middle of a larger array.
        starts = tuple(int(start) for start in rng.integers(0, 1000, len(shape)))
        whole = tuple(size + start + 3 for size, start in zip(shape, starts, strict=True))
        on_device = device_sums(jnp.asarray(values), starts, whole)
        assert tuple(map(int, on_device)) == host_sums(values, starts, whole), shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int64"])
def test_programs_and_numpy_compute_the_same_sums(dtype, rng, monkeypatch):
    monkeypatch.setattr(element_sums, "_PROGRAM_SIZES", (256, 64))
    programs = []
    plain = element_sums._block_sums
    monkeypatch.setattr(element_sums, "_block_sums", lambda w, k: programs.append(w) or plain(w, k))
    for shape in [(63,), (64,), (2 * 256 + 3 * 64 + 5,), (3, 400), (3, 5, 20)]:
        values = random_values(rng, shape, dtype)
        starts = tuple(int(start) for start in rng.integers(0, 1000, len(shape)))
        for first, whole in (
            (starts, [s + n + 3 for s, n in zip(starts, shape, strict=True)]),
            ((0,) * len(shape), shape),
        ):
            sums = host_sums(values, first, whole, compiled=True)
            assert sums == host_sums(values, first, whole), shape
    assert {len(words) for words in programs} == {256, 64}


def test_large_arrays_on_cpus_have_the_sums_of_numpy(rng):
    values = random_values(rng, (2, element_sums._PROGRAM_SIZES[-1] + 99), "float32")
    assert array_checksums({"a": jnp.asarray(values)}) == {"a": host_checksum(values)}


def test_the_sums_are_those_of_the_definition():
    values = np.array([[1.5, -2.0], [0.0, 3.25]], np.float32)
    mixed_sum = weighted_sum = 0
    for position, bits in enumerate(values.view(np.uint32).ravel().tolist()):
        key = (2 * position * 0x9E3779B9 + 1) % 2**32
        mixed = bits ^ key
        mixed = (mixed ^ (mixed >> 16)) * 0x21F0AAAD % 2**32
        mixed = (mixed ^ (mixed >> 15)) * 0x735A2D97 % 2**32
        mixed ^= mixed >> 15
        mixed_sum += mixed
        weighted_sum += mixed * key
    assert host_sums(values, (0, 0), (2, 2)) == (mixed_sum % 2**32, weighted_sum % 2**32)


@pytest.mark.parametrize(
    "spec", [(), ("x",), (None, "y"), ("x", "y"), (("x", "y"),), ("y", "x")], ids=str
)
def test_checksum_does_not_depend_on_the_sharding(spec, rng):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))
    values = random_values(rng, (8, 16, 3), "float32")
    array = jax.device_put(values, NamedSharding(mesh, PartitionSpec(*spec)))
    expected = {"a": host_checksum(values)}
    assert array_checksums({"a": array}) == expected
    assert differing_arrays({"a": array}, expected) == []
    assert differing_arrays({"a": array + 1}, expected) == ["a"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_flipped_bit_changes_the_checksum(shape, rng):
    values = random_values(rng, shape, "float32")
    expected = host_checksum(values)
    assert host_checksum(values.copy()) == expected
    for _ in range(20 if values.size else 0):
        changed = values.copy()
        position = int(rng.integers(changed.size))
        changed.reshape(-1).view(np.uint32)[position] ^= np.uint32(1 << rng.integers(32))
        assert host_checksum(changed) != expected


def test_moved_and_negated_elements_change_the_checksum(rng):
    values = random_values(rng, (6, 1000), "float32")
    expected = host_checksum(values)
    changes = {
        "swapped": values[[1, 0, 2, 3, 4, 5]],
        "shifted": np.roll(values, 1),
        "negated": -values,
        "two negated": np.where(np.arange(1000) < 2, -values, values),
        "zeroed": np.where(np.arange(1000) < 100, np.float32(0), values),
    }
    for name, changed in changes.items():
        assert host_checksum(changed).value != expected.value, name
    assert host_checksum(np.zeros((2, 3))).value != host_checksum(np.zeros((2, 4))).value


def test_numbers_of_eight_bytes_have_checksums(rng):
    values = rng.integers(0, 2**60, (3, 4))
    expected = host_checksum(values)
    for bit in (0, 31, 32, 63):
        changed = values.copy()
        changed[1, 2] ^= np.int64(-(2**63) if bit == 63 else 1 << bit)
        assert host_checksum(changed) != expected
    parts = [host_sums(values[:, :1], (0, 0), (3, 4)), host_sums(values[:, 1:], (0, 1), (3, 4))]
    whole = host_sums(values, (0, 0), (3, 4))
    assert tuple(sum(words) % 2**32 for words in zip(*parts, strict=True)) == whole


@pytest.mark.parametrize(
    ("of_processes", "fits"),
    [
        # Copies of the whole in each process.
        ([(2, 7, 9), (2, 7, 9)], True),
        ([(2, 7, 9), (2, 7, 8)], False),
        # One half each, and four processes with two copies.
        ([(1, 5, 2**32 - 1), (1, 2, 10)], True),
        ([(1, 5, 4), (1, 2, 5), (1, 5, 4), (1, 2, 5)], True),
        ([(1, 5, 4), (1, 2, 5), (1, 5, 4), (1, 2, 6)], False),
        ([(1, 7, 9), (0, 0, 0)], False),
    ],
)
def test_processes_add_up_what_they_hold(of_processes, fits):
    expected = f"{7:08x}{9:08x}"
    assert _fits(np.array(of_processes, np.uint64), 2, expected) == fits

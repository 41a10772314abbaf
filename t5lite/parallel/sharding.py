"""Shardings from the names of axes, and global arrays from the rows of each process."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from t5lite.core.errors import UserError
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.rules import ROWS, Axes, spec_of


@contextlib.contextmanager
def on_mesh(mesh: DeviceMesh) -> Iterator[None]:
    """Traces inside the context with the mesh and its rules."""
    with jax.set_mesh(mesh.devices), nn.logical_axis_rules(list(mesh.rules.items())):
        yield


def sharding_of(
    axes: Axes, shape: tuple[int, ...], mesh: DeviceMesh, *, owner: str
) -> NamedSharding:
    """Returns the sharding of an array whose dimensions have the logical names `axes`.

    Raises:
        UserError: if mesh axes do not divide the dimension that they split, or one axis would split
            two dimensions.
    """
    assert len(axes) == len(shape), (owner, axes, shape)
    spec = spec_of(axes, mesh.rules, owner=owner)
    for name, size in zip(axes, shape, strict=True):
        if name is not None and size % mesh.shares(name):
            sizes = {axis: mesh.shape[axis] for axis in mesh.rules[name] if mesh.shape[axis] > 1}
            product = " * ".join(f"{axis} {count}" for axis, count in sizes.items())
            raise UserError(
                f"{owner}: its axis {name!r} must be divisible by the mesh axes that split it "
                f"({product}), got {size}; choose another size, another Mesh, or other Mesh.rules"
            )
    return NamedSharding(mesh.devices, spec)


def logical_axes(boxed: Any) -> Any:
    """Returns the names of the axes of each parameter in a tree of `nn.LogicallyPartitioned`."""
    return jax.tree.map(
        lambda box: box.names, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )


def tree_shardings(tree: Any, axes: Any, mesh: DeviceMesh) -> Any:
    """Returns the sharding of every leaf of `tree`, given the names of its axes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, names: sharding_of(
            names, leaf.shape, mesh, owner=jax.tree_util.keystr(path, simple=True, separator="/")
        ),
        tree,
        axes,
    )


def state_axes(state: Any, params: Any, axes: Any) -> Any:
    """Returns names of axes for an optimizer state, whatever the optimizer.

    A leaf belongs to a parameter if its path contains the path of the parameter. It has the axes of
    the parameter's dimensions that it has; dimensions that are missing or of length 1, as in
    factored moments, have none. Leaves that belong to no parameter have no axes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    by_path = {
        _keys(path): (leaf.shape, name) for (path, leaf), name in zip(leaves, names, strict=True)
    }
    lengths = {len(path) for path in by_path}

    def axes_of(path: tuple[Any, ...], leaf: Any) -> Axes:
        keys = _keys(path)
        for start in range(len(keys)):
            for length in lengths:
                if (found := by_path.get(keys[start : start + length])) is not None:
                    return _remaining_axes(leaf.shape, *found)
        return (None,) * len(leaf.shape)

    return jax.tree_util.tree_map_with_path(axes_of, state)


def _keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _remaining_axes(shape: tuple[int, ...], full: tuple[int, ...], axes: Axes) -> Axes:
    """Returns the axis of the first matching size in `full` for each of `shape`, or only None."""
    if len(shape) == len(full):
        if any(size not in (1, whole) for size, whole in zip(shape, full, strict=True)):
            return (None,) * len(shape)
        pairs = zip(shape, full, axes, strict=True)
        return tuple(name if size == whole else None for size, whole, name in pairs)
    found: list[str | None] = []
    at = 0
    for size in shape:
        while at < len(full) and full[at] != size:
            at += 1
        if at == len(full):
            return (None,) * len(shape)
        found.append(axes[at])
        at += 1
    return tuple(found)


def batch_sharding(
    mesh: DeviceMesh, batch_size: int, *, owner: str = "train.batch_size"
) -> NamedSharding:
    """Returns the sharding of [batch, ...] arrays.

    Raises:
        UserError: if the mesh does not divide the batch.
    """
    return sharding_of(("batch",), (batch_size,), mesh, owner=owner)


def by_rows(function: Callable[..., Any], mesh: DeviceMesh) -> Callable[..., Any]:
    """Returns `function` of parameters and trees of rows, computed by each device for its own rows.

    A device then leaves a loop as soon as its own rows are done. If the mesh splits more than the
    batch, `function` itself is returned.
    """
    shared = {axis for name in mesh.rules.keys() - ROWS for axis in mesh.rules[name]}
    if mesh.shares("batch") == 1 or any(mesh.shape[axis] > 1 for axis in shared):
        return function

    def alone(params: Any, *rows: Any) -> Any:
        # Each device has all of its arrays, so nothing is split.
        with nn.logical_axis_rules([]):
            return function(params, *rows)

    def split(params: Any, *rows: Any) -> Any:
        of_rows = jax.P(mesh.rules["batch"])
        in_specs = (jax.P(), *(of_rows for _ in rows))
        # Unchecked: the initial values of a loop are equal on all devices, later values are not.
        return jax.shard_map(alone, in_specs=in_specs, out_specs=of_rows, check_vma=False)(
            params, *rows
        )

    return split


def on_host(tree: Any) -> Any:
    """Returns global arrays as NumPy arrays; all processes must call it."""
    # Waits first: XLA on CPUs aborts a program whose devices wait long for each other.
    jax.block_until_ready(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def check_lengths(mesh: DeviceMesh, lengths: Mapping[str, int]) -> None:
    """Raises a UserError if the mesh does not divide the length of a row, in tokens."""
    shares = mesh.shares("length")
    for name, length in lengths.items():
        if length % shares:
            raise UserError(
                f"{name}: rows must be divisible by the mesh axes that split 'length' ({shares}), "
                f"got {length} tokens; bind train.length_multiple to a multiple of {shares}"
            )


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """Returns the indices of the rows of the global batch on the devices of this process."""
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = {row for index in indices if index for row in range(*index[0].indices(batch_size))}
    return sorted(rows)


def make_global(
    sharding: NamedSharding, batch_size: int
) -> Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]:
    """Returns a function from the rows of this process to the global arrays of all processes."""
    rows = np.asarray(local_rows(sharding, batch_size))

    def to_global(local: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            first, end, _ = index[0].indices(batch_size)
            return local[np.searchsorted(rows, first) : np.searchsorted(rows, end)]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part)

    return lambda batch: {name: to_global(array) for name, array in batch.items()}

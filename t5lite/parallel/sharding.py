"""From names of axes to shardings, and from a process's rows to global arrays."""

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
    """What is traced inside puts its arrays where the rules say."""
    with jax.set_mesh(mesh.devices), nn.logical_axis_rules(list(mesh.rules.items())):
        yield


def sharding_of(
    axes: Axes, shape: tuple[int, ...], mesh: DeviceMesh, *, owner: str
) -> NamedSharding:
    """Returns the sharding of an array whose dimensions have the logical names `axes`.

    Raises:
        UserError: where mesh axes do not divide the dimension that they split, or one would split
            two dimensions.
    """
    assert len(axes) == len(shape), (owner, axes, shape)
    spec = spec_of(axes, mesh.rules, owner=owner)
    for name, size in zip(axes, shape, strict=True):
        if name is not None and size % mesh.shares(name):
            sizes = {axis: mesh.shape[axis] for axis in mesh.rules[name] if mesh.shape[axis] > 1}
            told = " * ".join(f"{axis} {count}" for axis, count in sizes.items())
            raise UserError(
                f"{owner}: its axis {name!r} must be divisible by the mesh axes that split it "
                f"({told}), got {size}; choose another size, another Mesh, or other Mesh.rules"
            )
    return NamedSharding(mesh.devices, spec)


def logical_axes(boxed: Any) -> Any:
    """Returns for each parameter of a tree of `nn.LogicallyPartitioned` the names of its axes."""
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
    """Returns names of axes for a state that holds trees like the parameters, and other leaves.

    A leaf belongs to a parameter where the parameter's path is part of its own. It has that
    parameter's axes where it has its sizes; if it lacks some dimensions, or they have length 1,
    as in factored moments, it has the axes of those that are left. All other leaves have none.
    No optimizer has to be known for this.
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
    """Names each dimension of `shape` by its first match, in order, in `full`; else all None."""
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
        UserError: where the mesh does not divide the batch.
    """
    return sharding_of(("batch",), (batch_size,), mesh, owner=owner)


def by_rows(function: Callable[..., Any], mesh: DeviceMesh) -> Callable[..., Any]:
    """Returns `function` of parameters and trees of rows, done by each device for its own rows
    alone where devices share nothing but the batch; elsewhere it is `function` itself.

    So a device leaves a loop when its own rows are done, and waits for no other in between.
    """
    shared = {axis for name in mesh.rules.keys() - ROWS for axis in mesh.rules[name]}
    if mesh.shares("batch") == 1 or any(mesh.shape[axis] > 1 for axis in shared):
        return function

    def alone(params: Any, *rows: Any) -> Any:
        # A device on its own has nothing to split.
        with nn.logical_axis_rules([]):
            return function(params, *rows)

    def split(params: Any, *rows: Any) -> Any:
        of_rows = jax.P(mesh.rules["batch"])
        in_specs = (jax.P(), *(of_rows for _ in rows))
        # Unchecked: what a loop begins with is the same on all devices, what it ends with is not.
        return jax.shard_map(alone, in_specs=in_specs, out_specs=of_rows, check_vma=False)(
            params, *rows
        )

    return split


def on_host(tree: Any) -> Any:
    """Returns the whole of global arrays; all processes have to ask."""
    # First here: XLA on CPUs ends a program whose devices wait long for each other.
    jax.block_until_ready(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def check_lengths(mesh: DeviceMesh, lengths: Mapping[str, int]) -> None:
    """Raises a UserError where the mesh does not divide the length of a row, in tokens."""
    shares = mesh.shares("length")
    for name, length in lengths.items():
        if length % shares:
            raise UserError(
                f"{name}: rows must be divisible by the mesh axes that split 'length' ({shares}), "
                f"got {length} tokens; bind train.length_multiple to a multiple of {shares}"
            )


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """Returns the rows of the global batch that this process's devices hold."""
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = {row for index in held if index for row in range(*index[0].indices(batch_size))}
    return sorted(rows)


def make_global(
    sharding: NamedSharding, batch_size: int
) -> Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]:
    """Returns a function from this process's rows to the global arrays of all processes."""
    rows = np.asarray(local_rows(sharding, batch_size))

    def place(local: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            first, end, _ = index[0].indices(batch_size)
            return local[np.searchsorted(rows, first) : np.searchsorted(rows, end)]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part)

    return lambda batch: {name: place(array) for name, array in batch.items()}

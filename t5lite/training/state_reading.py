"""Arrays of a checkpoint, read by Orbax and checked against their checksums."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from t5lite.core.lazy import by_name, name_of
from t5lite.training.array_checksums import ArrayChecksum, differing_arrays, host_checksum
from t5lite.training.checkpoint_errors import (
    Damaged,
    damage_errors,
    first_line,
    read_together,
)
from t5lite.training.late_errors import ignore_late_errors

# Of the arrays of a checkpoint by name; None for one of an earlier version, which has none.
Expected = Mapping[str, ArrayChecksum] | None


def read_arrays(folder: pathlib.Path, item: Any, expected: Expected) -> Any:
    """Returns the arrays of a checkpoint that the abstract `item` contains, with its shardings.

    All processes must call it.

    Args:
        folder: the directory of the checkpoint.

    Raises:
        Damaged: in all processes, if a process cannot read them or a checksum differs.
    """
    as_saved = item
    if expected is not None:
        if missing := sorted(by_name(item).keys() - expected.keys()):
            raise Damaged(str(folder), f"it does not contain {missing[0]}")
        # Checked as they were saved, and then converted.
        as_saved = jax.tree_util.tree_map_with_path(
            lambda path, x: _with_dtype(x, expected[name_of(path)]), item
        )
    restored = read_together(str(folder), lambda: _read(folder, as_saved, _arguments(as_saved)))
    if expected is None:
        return restored
    if differing := differing_arrays(restored, expected):
        raise _differs(folder, differing[0])
    return jax.tree.map(
        lambda x, wanted: x if x.dtype == wanted.dtype else x.astype(wanted.dtype), restored, item
    )


def read_array(folder: pathlib.Path, name: str, expected: Expected, tree: Any = None) -> np.ndarray:
    """Returns one array by its path such as "params/encoder/encoder_norm/scale".

    Args:
        tree: of the whole checkpoint, from `read_metadata`; needed if the path leads through a
            list, as in the state of most optimizers.

    Raises:
        Damaged: if it cannot be read, or its checksum differs.
    """
    wanted = ocp.RestoreArgs(restore_type=np.ndarray)
    if tree is None:
        keys = tuple(name.split("/"))
        item, args = (flax.traverse_util.unflatten_dict({keys: leaf}) for leaf in (0, wanted))
    else:
        item = jax.tree_util.tree_map_with_path(
            lambda path, _: 0 if name_of(path) == name else ocp.PLACEHOLDER, tree, is_leaf=is_array
        )
        args = jax.tree.map(lambda _: wanted, tree, is_leaf=is_array)
    values = np.asarray(by_name(_read(folder, item, args))[name])
    if expected is not None and host_checksum(values) != expected.get(name):
        raise _differs(folder, name)
    return values


def is_array(leaf: Any) -> bool:
    """Whether this is the description of an array in `read_metadata`."""
    return hasattr(leaf, "shape")


def read_metadata(folder: pathlib.Path) -> Any:
    """Returns the tree of a checkpoint with shapes and dtypes instead of arrays.

    Raises:
        Damaged: if it cannot be read.
    """
    with damage_errors(str(folder)):
        return ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree


def _read(folder: pathlib.Path, item: Any, restore_args: Any) -> Any:
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    ignore_late_errors()
    try:
        return ocp.PyTreeCheckpointHandler().restore(folder / "state", args=args)
    # Any error: Orbax raises a plain `Exception` for an array that cannot be read.
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise Damaged(str(folder), first_line(cause)) from error


def _arguments(item: Any) -> Any:
    return ocp.checkpoint_utils.construct_restore_args(item)


def _with_dtype(wanted: Any, saved: ArrayChecksum) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(wanted.shape, saved.dtype, sharding=wanted.sharding)


def _differs(folder: pathlib.Path, name: str) -> Damaged:
    return Damaged(str(folder), f"{name} has another checksum than when it was saved")

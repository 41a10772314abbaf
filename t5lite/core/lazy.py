"""Arrays that are loaded when they are needed, and tree paths as text."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array that `load` returns, so that only one of many is in memory at a time.

    Args:
        sharding: the target sharding; None until it is known.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], np.ndarray]
    sharding: Any = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def by_name(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths.

    >>> by_name({"a": {"b": 1, "c": 2}})
    {'a/b': 1, 'a/c': 2}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {name_of(path): leaf for path, leaf in leaves}


def name_of(path: Any) -> str:
    """Returns a key path of `jax.tree_util` as text, `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")

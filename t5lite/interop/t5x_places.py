"""Where T5X keeps a parameter, and what belongs to it."""

from collections.abc import Mapping

import numpy as np

from t5lite.core.lazy import LazyArray
from t5lite.interop.foreign import (
    Shape,
    Stored,
    check_array,
    gathered,
    is_stacked,
    matrix_shape,
)
from t5lite.models.initializers import Parameter

Arrays = Mapping[str, Stored]
# Where T5X and Flaxformer name a parameter otherwise.
RENAMED = {"global_layer_norm": "attention/T5LayerNorm_0"}


class Place:
    """Where T5X keeps a parameter: in an array for each layer, or with scanned layers in one.

    Args:
        name: the parameter's.
        box: its shape and the names of its axes.
        arrays: what the checkpoint holds.
    """

    def __init__(self, name: str, box: Parameter, arrays: Arrays) -> None:
        self.name, self.shape, self.axes = name, tuple(box.value.shape), tuple(box.names)
        theirs = name
        for ours, other in RENAMED.items():
            theirs = theirs.replace(ours, other)
        stack = name.split("/")[0]
        scanned = theirs.replace("/layers/", f"/{stack}/")
        self.is_scanned = is_stacked(name) and scanned in arrays
        if self.is_scanned or not is_stacked(name):
            self.names = [scanned]
        else:
            self.names = [
                theirs.replace("/layers/", f"/layers_{layer}/") for layer in range(self.shape[0])
            ]
        self._arrays = arrays

    @property
    def layer_shape(self) -> Shape:
        """The shape of one layer's part."""
        return self.shape[1:] if is_stacked(self.name) else self.shape

    def check(self, owner: str) -> None:
        """Raises a UserError where an array has another shape; heads may be joined or not."""
        self.check_like(owner, {name: self._arrays[name] for name in self.names})

    def check_like(self, owner: str, arrays: Arrays) -> None:
        """Raises a UserError where arrays of the parameter's names have other shapes than it."""
        whole = self._with_layers(self.layer_shape)
        matrix = self._with_layers(matrix_shape(self.name, self.layer_shape))
        for name in self.names:
            fits = whole if arrays[name].shape == whole else matrix
            check_array(owner, name, fits, arrays[name])

    def array(self, arrays: Arrays) -> LazyArray:
        """Returns the parameter, or something of its shape, from arrays of these names."""
        return self.like(self.shape, [arrays[name] for name in self.names], layers_at=1)

    def like(self, shape: Shape, parts: list[Stored], *, layers_at: int) -> LazyArray:
        """Returns an array of `shape` from parts that are stored as the parameter is.

        Args:
            layers_at: the dimension that the layers are in a part, where they are scanned.
        """
        stored = parts[0].shape
        rest = (*stored[:layers_at], *stored[layers_at + 1 :])

        def as_stored(part: np.ndarray) -> np.ndarray:
            if self.is_scanned:
                return np.moveaxis(part.reshape(part.shape[0], *rest), 0, layers_at)
            return part.reshape(stored)

        per_layer = is_stacked(self.name) and not self.is_scanned
        return gathered(shape, parts, as_stored, per_layer=per_layer)

    def _with_layers(self, shape: Shape) -> Shape:
        """T5X stacks scanned layers along the second dimension."""
        return (shape[0], self.shape[0], *shape[1:]) if self.is_scanned else shape

"""The arrays of T5X that belong to a parameter."""

from collections.abc import Mapping

import numpy as np

from t5lite.core.lazy import LazyArray
from t5lite.interop.foreign import (
    ArrayShape,
    StoredArray,
    check_array,
    gathered,
    is_stacked,
    matrix_shape,
)
from t5lite.models.initializers import Parameter

Arrays = Mapping[str, StoredArray]
# Parts of names that differ in T5X and Flaxformer.
RENAMED = {"global_layer_norm": "attention/T5LayerNorm_0"}


class T5xParameter:
    """The arrays of a parameter: one for each layer, or a single one if layers are scanned.

    Args:
        name: of the parameter.
        box: its shape and the names of its axes.
        arrays: all arrays of the checkpoint.
    """

    def __init__(self, name: str, box: Parameter, arrays: Arrays) -> None:
        self.name = name
        self.shape = tuple(box.value.shape)
        self.axes = tuple(box.names)
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
    def layer_shape(self) -> ArrayShape:
        """The shape of one layer's part."""
        return self.shape[1:] if is_stacked(self.name) else self.shape

    def check(self, owner: str) -> None:
        """Raises a UserError if an array has another shape; heads may be joined or not."""
        self.check_like(owner, {name: self._arrays[name] for name in self.names})

    def check_like(self, owner: str, arrays: Arrays) -> None:
        """Raises a UserError if arrays with the parameter's names have other shapes."""
        whole = self._with_layers(self.layer_shape)
        matrix = self._with_layers(matrix_shape(self.name, self.layer_shape))
        for name in self.names:
            fits = whole if arrays[name].shape == whole else matrix
            check_array(owner, name, fits, arrays[name])

    def array(self, arrays: Arrays) -> LazyArray:
        """Returns the parameter, or a moment of its shape, from arrays with its names."""
        return self.like(self.shape, [arrays[name] for name in self.names], layers_at=1)

    def like(self, shape: ArrayShape, parts: list[StoredArray], *, layers_at: int) -> LazyArray:
        """Returns an array of `shape` from parts that are stored like the parameter.

        Args:
            layers_at: the dimension of the layers in a part, if they are scanned.
        """
        stored = parts[0].shape
        rest = (*stored[:layers_at], *stored[layers_at + 1 :])

        def as_stored(part: np.ndarray) -> np.ndarray:
            if self.is_scanned:
                return np.moveaxis(part.reshape(part.shape[0], *rest), 0, layers_at)
            return part.reshape(stored)

        per_layer = is_stacked(self.name) and not self.is_scanned
        return gathered(shape, parts, as_stored, per_layer=per_layer)

    def _with_layers(self, shape: ArrayShape) -> ArrayShape:
        """Returns the stored shape: T5X stacks scanned layers along the second dimension."""
        return (shape[0], self.shape[0], *shape[1:]) if self.is_scanned else shape

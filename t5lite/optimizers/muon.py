"""Muon for stacked layers: optax's, with each layer's kernel as one matrix."""

import inspect
from typing import Any

import flax.traverse_util
import optax
import optax.contrib

from t5lite.core.numbers import Number
from t5lite.optimizers.adafactor import BATCH_AXES, ROW_AXIS

# Parameters with one of these axes are no hidden matrices; Adam updates them.
TABLE_AXES = ("vocab", "relpos_buckets", "classes")


def muon(
    learning_rate: Number, *, param_axes: Any, **arguments: Any
) -> optax.GradientTransformation:
    """Returns `optax.contrib.muon` whose matrices are named by the axes of the parameters.

    Kernels are orthogonalized for each layer and expert apart, all axes other than `embed` taken
    together: [layers, embed, heads, kv] is a matrix [embed, heads * kv] in every layer. Embeddings,
    biases, norms, and the projection to the vocabulary are updated by Adam.

    Args:
        param_axes: the tree of parameters with the names of the axes of each as leaves.
        **arguments: of `optax.contrib.muon`, except `muon_weight_dimension_numbers`.
    """
    return optax.contrib.muon(
        learning_rate,
        muon_weight_dimension_numbers=matrix_dimensions(param_axes),
        **arguments,
    )


_signature = inspect.signature(optax.contrib.muon)
muon.__signature__ = _signature.replace(  # type: ignore[attr-defined]  # mypy: no such attribute
    parameters=[
        inspect.Parameter("param_axes", inspect.Parameter.KEYWORD_ONLY)
        if p.name == "muon_weight_dimension_numbers"
        else p.replace(kind=p.KEYWORD_ONLY)
        for p in _signature.parameters.values()
    ]
)


def matrix_dimensions(param_axes: Any) -> Any:
    """Returns for each parameter the dimensions of its matrices; None for one that has none.

    >>> axes = {"query": ("layers", "embed", "heads", "kv"), "scale": ("layers", "embed")}
    >>> matrix_dimensions(axes)["query"]
    MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2, 3))
    >>> matrix_dimensions(axes)["scale"] is None
    True
    """
    flat = flax.traverse_util.flatten_dict(param_axes)
    return flax.traverse_util.unflatten_dict(
        {path: _dimensions_of(axes) for path, axes in flat.items()}
    )


def _dimensions_of(axes: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    dimensions = [i for i, name in enumerate(axes) if name not in BATCH_AXES]
    if len(dimensions) < 2 or any(name in TABLE_AXES for name in axes):
        return None
    # A kernel that ends in the model width maps all its other axes to it.
    split = -1 if axes[dimensions[-1]] == ROW_AXIS and axes[dimensions[0]] != ROW_AXIS else 1
    return optax.contrib.MuonDimensionNumbers(
        reduction_axis=tuple(dimensions[:split]), output_axis=tuple(dimensions[split:])
    )

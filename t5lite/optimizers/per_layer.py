"""Optimizers that use a whole parameter, such as its norm, for layers that are stacked.

Every layer and every expert is updated as a parameter of its own, as in a model without stacking.
Optimizers whose updates are elementwise, or that use the norm of all parameters, need none of this.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.traverse_util
import jax
import optax

from t5lite.core.numbers import Number
from t5lite.optimizers.adafactor import BATCH_AXES

Factory: TypeAlias = Callable[..., optax.GradientTransformation]


def per_layer(factory: Factory) -> Factory:
    """Returns the factory of an optimizer that updates every stacked layer as `factory`'s would.

    Its additional argument `param_axes` is the tree of parameters with the names of the axes of
    each as leaves. The state holds one state for the parameters with each number of layers.
    """

    @functools.wraps(factory)
    def made(
        learning_rate: Number, *, param_axes: Any, **arguments: Any
    ) -> optax.GradientTransformation:
        return _apart(factory(learning_rate=learning_rate, **arguments), param_axes)

    signature = inspect.signature(factory)
    made.__signature__ = signature.replace(  # type: ignore[attr-defined]  # mypy: no such attribute
        parameters=[
            *(p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()),
            inspect.Parameter("param_axes", inspect.Parameter.KEYWORD_ONLY),
        ]
    )
    return made


def _apart(inner: optax.GradientTransformation, param_axes: Any) -> optax.GradientTransformation:
    """Applies `inner` to the layers and experts of each parameter apart."""
    axes_of = flax.traverse_util.flatten_dict(param_axes)

    def groups(tree: Any) -> dict[tuple[int, ...], Any]:
        """Returns the parameters with the same numbers of layers and experts, by these numbers."""
        found: dict[tuple[int, ...], dict[Any, Any]] = {}
        for path, leaf in flax.traverse_util.flatten_dict(tree).items():
            count = sum(name in BATCH_AXES for name in axes_of[path])
            assert all(name in BATCH_AXES for name in axes_of[path][:count]), axes_of[path]
            found.setdefault(leaf.shape[:count], {})[path] = leaf
        return {sizes: flax.traverse_util.unflatten_dict(some) for sizes, some in found.items()}

    def each(function: Callable[..., Any], sizes: tuple[int, ...]) -> Callable[..., Any]:
        for _ in sizes:
            function = jax.vmap(function)
        return function

    def name(sizes: tuple[int, ...]) -> str:
        return "x".join(map(str, sizes)) or "single"

    def init(params: Any) -> dict[str, Any]:
        return {
            name(sizes): each(inner.init, sizes)(some) for sizes, some in groups(params).items()
        }

    def update(grads: Any, state: dict[str, Any], params: Any | None = None) -> tuple[Any, Any]:
        assert params is not None, "norms of parameters are needed"
        mine = groups(params)
        updates: dict[Any, Any] = {}
        new: dict[str, Any] = {}
        for sizes, some in groups(grads).items():
            key = name(sizes)
            made, new[key] = each(inner.update, sizes)(some, state[key], mine[sizes])
            updates |= flax.traverse_util.flatten_dict(made)
        return flax.traverse_util.unflatten_dict(updates), new

    return optax.GradientTransformation(init, update)

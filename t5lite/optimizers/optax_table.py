"""The optimizers of optax and optax.contrib that gin can bind, and why others cannot be bound."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax
import optax.contrib

from t5lite.optimizers.muon import muon
from t5lite.optimizers.per_layer import per_layer

_WRAPPER = (
    "it wraps another optimizer; write a function that builds both, and bind @module:function()"
)
_PART = "it is a part of an optimizer; write a function that chains it, and bind @module:function()"
_AVERAGED = (
    "it trains at other parameters than it evaluates, which checkpoints and evaluation do not know"
)

# By name, what the training step does not provide.
REJECTED: Mapping[str, str] = {
    "optax.lbfgs": "its line search evaluates the loss several times a step",
    "optax.polyak_sgd": "it computes the learning rate from the loss and takes no schedule",
    "optax.optimistic_adam": "optax replaced it by optimistic_adam_v2",
    "optax.contrib.differentially_private_aggregate": "it needs the gradient of every example",
    "optax.contrib.dpsgd": "it needs the gradient of every example",
    "optax.contrib.galore": "it projects parameters of two dimensions, and layers are stacked here",
    "optax.contrib.hutchinson_estimator_diag_hessian": _PART,
    "optax.contrib.mechanize": _WRAPPER,
    "optax.contrib.normalize": _PART,
    "optax.contrib.reduce_on_plateau": _WRAPPER,
    "optax.contrib.sam": _WRAPPER,
    "optax.contrib.schedule_free": _AVERAGED,
    "optax.contrib.schedule_free_adamw": _AVERAGED,
    "optax.contrib.schedule_free_sgd": _AVERAGED,
    "optax.contrib.split_real_and_imaginary": _WRAPPER,
    "optax.contrib.sophia": "it estimates the Hessian from the loss as a function of parameters",
}
# Factories whose result has no annotation.
_WITHOUT_ANNOTATION = ("optax.contrib.dog", "optax.contrib.dowg")
# Factories that need the names of axes.
_WITH_AXES: Mapping[str, Callable[..., Any]] = {
    "optax.contrib.muon": muon,
    # These use the norm, the rows or the columns of a whole parameter.
    "optax.adafactor": per_layer(optax.adafactor),
    "optax.fromage": per_layer(optax.fromage),
    "optax.lamb": per_layer(optax.lamb),
    "optax.lars": per_layer(optax.lars),
    "optax.novograd": per_layer(optax.novograd),
    "optax.sm3": per_layer(optax.sm3),
}


def is_optax_factory(target: Any) -> bool:
    """Whether `target` is a function from a learning rate to an optax transformation."""
    if not isinstance(target, functools.partial) and not inspect.isfunction(target):
        return False
    signature = inspect.signature(target)
    returned = str(signature.return_annotation)
    return "learning_rate" in signature.parameters and "GradientTransformation" in returned


def optax_factories() -> dict[str, Callable[..., Any]]:
    """Returns every optimizer of optax and optax.contrib that can train here, by its full name."""
    found: dict[str, Callable[..., Any]] = {}
    for package in (optax, optax.contrib):
        for short in dir(package):
            name = f"{package.__name__}.{short}"
            factory = getattr(package, short)
            if (
                not short.startswith(("_", "scale_by"))
                and name not in REJECTED
                and (is_optax_factory(factory) or name in _WITHOUT_ANNOTATION)
            ):
                found[name] = _WITH_AXES.get(name, factory)
    return found

"""Schedules that are plain functions: optax's by name, and "module:function" of one's own.

Their numbers are constants of the program, because such functions may branch on them in Python: a
sweep over them compiles once for each value.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from t5lite.core.errors import UserError
from t5lite.core.named import import_function
from t5lite.core.numbers import check_number, numeric, static
from t5lite.optimizers.schedules import ConstantSchedule, Schedule, StepNumber


class _Items(NamedTuple):
    """A dictionary as a constant of the program, which must be hashable."""

    items: tuple[tuple[Any, Any], ...]


@numeric
class FunctionSchedule:
    """The schedule that a function computes, or that a factory returns for its arguments.

    Args:
        function: from a step to the rate; or, with `arguments`, the factory of such a function.
        arguments: of the factory, as sorted pairs; None if `function` is no factory.
    """

    function: Callable[..., Any] = static()
    arguments: tuple[tuple[str, Any], ...] | None = static(default=None)

    def __call__(self, step: StepNumber) -> Float[Array, ""]:
        function = self.function
        if self.arguments is not None:
            function = function(**{name: _thawed(value) for name, value in self.arguments})
        return jnp.asarray(function(step), jnp.float32)


def as_schedule(owner: str, function: Callable[..., Any]) -> Schedule:
    """Returns a schedule that the compiled step can take.

    Args:
        owner: the name of the binding in errors.
        function: a schedule whose numbers are inputs, or a plain function from a step to a rate.

    Raises:
        UserError: if it cannot be traced, or does not return one number.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        rate = jax.eval_shape(function, jax.ShapeDtypeStruct((), jnp.int32))
    # A function of one's own may raise anything.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{owner}: {name} must return the rate of a traced step, got {type(error).__name__}: "
            f"{reason[:200]}; choose with jnp.where instead of if"
        ) from error
    if rate.shape != ():
        raise UserError(f"{owner}: {name} must return one number, got shape {rate.shape}")
    # A plain function is a leaf; a schedule of the package is a tree, perhaps without leaves.
    is_plain = jax.tree.leaves(function) == [function]
    return FunctionSchedule(function=function) if is_plain else function


def schedule_from(owner: str, rate: Any) -> Schedule:
    """Returns the schedule that a user bound to a learning rate.

    Args:
        owner: the name of the binding in errors.
        rate: a schedule, "module:function" of one's own, or a number for a constant rate.

    Raises:
        UserError: if it is none of these, or cannot be traced.
    """
    if isinstance(rate, str) and ":" in rate:
        rate = import_function(owner, rate)
    if callable(rate):
        return as_schedule(owner, rate)
    if rate is None:
        raise UserError(f"{owner} is required and not bound; bind a number or a schedule")
    check_number(owner, rate, "at least 0", lambda x: x >= 0)
    return ConstantSchedule(learning_rate=rate)


def optax_schedules() -> dict[str, Callable[..., FunctionSchedule]]:
    """Returns builders of the schedules that optax exports, by their names there."""
    found = {}
    for name in dir(optax):
        factory = getattr(optax, name)
        if inspect.isfunction(factory) and _returns_schedule(name, factory):
            found[name] = _schedule_builder(name, factory)
    return found


def _returns_schedule(name: str, factory: Callable[..., Any]) -> bool:
    returned = str(inspect.signature(factory).return_annotation)
    is_named = name.endswith(("_schedule", "_decay")) or name == "join_schedules"
    return is_named and ("Callable" in returned or "Schedule" in returned)


def _schedule_builder(name: str, factory: Callable[..., Any]) -> Callable[..., FunctionSchedule]:
    def build(**arguments: Any) -> FunctionSchedule:
        try:
            factory(**arguments)
        except (TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"optax.{name}: {reason}, got {arguments}") from error
        frozen = tuple((key, _frozen(value)) for key, value in sorted(arguments.items()))
        return FunctionSchedule(function=factory, arguments=frozen)

    # gin reads the signature; mypy does not know this attribute of functions.
    signature = inspect.signature(factory)
    build.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()],
        return_annotation=FunctionSchedule,
    )
    build.__doc__ = f"The schedule `optax.{name}`; its numbers are constants of the program."
    return build


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return _Items(tuple(sorted((key, _frozen(item)) for key, item in value.items())))
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, _Items):
        return {key: _thawed(item) for key, item in value.items}
    if isinstance(value, tuple):
        return [_thawed(item) for item in value]
    return value

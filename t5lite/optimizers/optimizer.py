"""An optimizer as the step uses it: a schedule, numbers, and the optax factory that takes them."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax
from jaxtyping import Array, Float

from t5lite.core.errors import UserError
from t5lite.core.numbers import Number, check_number, numeric, static
from t5lite.optimizers.function_schedule import schedule_from
from t5lite.optimizers.schedules import Schedule, StepNumber


@numeric
class Optimizer:
    """Called inside the step. Numbers are inputs of the program, everything else is part of it.

    Args:
        learning_rate: the schedule.
        numbers: arguments of the factory that are numbers, or tuples of numbers.
        factory: makes an optax transformation from `learning_rate`, `numbers` and `choices`, and
            from `param_axes`, the names of the axes of each parameter, if it takes them.
        choices: arguments of the factory that are not numbers, as sorted pairs.
    """

    learning_rate: Schedule
    numbers: Mapping[str, Any]
    factory: Callable[..., optax.GradientTransformation] = static()
    choices: tuple[tuple[str, Any], ...] = static(default=())

    def transformation(
        self, learning_rate: Number, param_axes: Any
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optax transformation at one step, given its learning rate."""
        arguments: dict[str, Any] = {**self.numbers, **dict(self.choices)}
        if "param_axes" in inspect.signature(self.factory).parameters:
            arguments["param_axes"] = param_axes
        made = self.factory(learning_rate=learning_rate, **arguments)
        return optax.with_extra_args_support(made)

    def check(self, trained: Iterable[str]) -> None:
        """Checks the names of the parameters that train: any will do."""

    def at(
        self, step: StepNumber, param_axes: Any
    ) -> tuple[Float[Array, ""], optax.GradientTransformationExtraArgs]:
        """Returns the learning rate at a step, and the optax transformation with it."""
        learning_rate = self.learning_rate(step)
        return learning_rate, self.transformation(learning_rate, param_axes)

    def loss_argument(
        self, transformation: Any, mean_loss: Callable[[], Float[Array, ""]]
    ) -> dict[str, Float[Array, ""]]:
        """Returns the argument `value` of an update that takes the loss, as MoMo's does; or {}."""
        takes_loss = "value" in inspect.signature(transformation.update).parameters
        return {"value": mean_loss()} if takes_loss else {}


def make_optimizer(
    factory: Callable[..., optax.GradientTransformation],
    *,
    name: str,
    learning_rate: Number | Schedule | str | None = None,
    **arguments: Any,
) -> Optimizer:
    """Returns the optimizer of `factory` with the arguments that a user bound.

    Args:
        factory: such as `optax.adamw`.
        name: the name under which users bind it, for messages.
        learning_rate: a schedule, "module:function" of one's own, or a number for a constant one;
            None for the default of the factory.
        **arguments: of the factory; those whose default is a float are numbers.

    Raises:
        UserError: if a number is not finite, a choice has another type than its default, or the
            schedule cannot be used.
    """
    parameters = inspect.signature(factory).parameters
    # Defaults of numbers are inputs too, so that binding one later needs no other program.
    defaults = {k: p.default for k, p in parameters.items() if _is_numbers(p.default)}
    default_rate = defaults.pop("learning_rate", None)
    numbers: dict[str, Any] = {}
    choices = []
    for key, value in sorted({**defaults, **arguments}.items()):
        default = parameters[key].default
        owner = f"{name}.{key}"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and (isinstance(value, float) or isinstance(default, float)):
            check_number(owner, value, "finite", lambda _: True)
            numbers[key] = float(value)
        elif isinstance(default, tuple) and _is_numbers(default) and not isinstance(value, str):
            numbers[key] = _checked_tuple(owner, value, len(default))
        elif isinstance(default, float):
            raise UserError(f"{owner} must be a number, got {value!r}")
        elif isinstance(default, int) and type(value) is not type(default):
            # Such as 'false', which would be true.
            rule = "True or False" if isinstance(default, bool) else "a whole number"
            raise UserError(f"{owner} must be {rule}, got {value!r}")
        elif value is not default:
            choices.append((key, tuple(value) if isinstance(value, list) else value))
    return Optimizer(
        learning_rate=schedule_from(
            f"{name}.learning_rate", default_rate if learning_rate is None else learning_rate
        ),
        numbers=numbers,
        factory=factory,
        choices=tuple(choices),
    )


def _is_numbers(value: Any) -> bool:
    """Whether a default is a float, or a tuple of floats such as betas."""
    if isinstance(value, tuple):
        return len(value) > 0 and all(isinstance(number, float) for number in value)
    return isinstance(value, float)


def _checked_tuple(owner: str, value: Any, length: int) -> tuple[float, ...]:
    if not isinstance(value, tuple | list) or len(value) != length:
        raise UserError(f"{owner} must be {length} numbers, got {value!r}")
    for number in value:
        if not isinstance(number, int | float):
            raise UserError(f"{owner} must be {length} numbers, got {value!r}")
        check_number(owner, number, "finite", lambda _: True)
    return tuple(float(number) for number in value)

"""An optimizer as the step takes it: a schedule, numbers, and the optax factory they go to."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from t5lite.core.errors import UserError
from t5lite.core.numbers import Number, check_number, numeric, static
from t5lite.optimizers.schedules import Constant, Schedule


@numeric
class Optimizer:
    """Called inside the step: numbers are inputs of the program, everything else is part of it.

    Args:
        learning_rate: the schedule.
        numbers: arguments of the factory that are numbers.
        factory: makes an optax transformation from `learning_rate`, `numbers` and `choices`, and
            from `param_axes`, the names of each parameter's axes, if it takes them.
        choices: arguments of the factory that are not numbers, as sorted pairs.
    """

    learning_rate: Schedule
    numbers: Mapping[str, Number]
    factory: Callable[..., optax.GradientTransformation] = static()
    choices: tuple[tuple[str, Any], ...] = static(default=())

    def transformation(
        self, learning_rate: Number, param_axes: Any
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optax transformation at one step, whose learning rate is given."""
        arguments: dict[str, Any] = {**self.numbers, **dict(self.choices)}
        if "param_axes" in inspect.signature(self.factory).parameters:
            arguments["param_axes"] = param_axes
        made = self.factory(learning_rate=learning_rate, **arguments)
        return optax.with_extra_args_support(made)


def make_optimizer(
    factory: Callable[..., optax.GradientTransformation],
    *,
    name: str,
    learning_rate: Number | Schedule,
    **arguments: Any,
) -> Optimizer:
    """Returns the optimizer of `factory` with what a user bound to it.

    Args:
        factory: such as `optax.adamw`.
        name: what users call it, for messages.
        learning_rate: a schedule, or a number for a constant one.
        **arguments: of the factory; those whose default is a float are numbers.

    Raises:
        UserError: where an argument that is a number is not finite.
    """
    parameters = inspect.signature(factory).parameters
    # Numbers that were not bound are inputs too, so that binding one later is no other program.
    defaults = {k: p.default for k, p in parameters.items() if isinstance(p.default, float)}
    defaults.pop("learning_rate", None)
    numbers, choices = {}, []
    for key, value in sorted({**defaults, **arguments}.items()):
        default = parameters[key].default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and (isinstance(value, float) or isinstance(default, float)):
            check_number(f"{name}.{key}", value, "finite", lambda _: True)
            numbers[key] = float(value)
        elif isinstance(default, float):
            raise UserError(f"{name}.{key} must be a number, got {value!r}")
        elif isinstance(default, int) and type(value) is not type(default):
            # Such as 'false', which would be true.
            rule = "True or False" if isinstance(default, bool) else "a whole number"
            raise UserError(f"{name}.{key} must be {rule}, got {value!r}")
        elif value is not default:
            choices.append((key, value))
    if not callable(learning_rate):
        check_number(f"{name}.learning_rate", learning_rate, "at least 0", lambda x: x >= 0)
        learning_rate = Constant(learning_rate=learning_rate)
    return Optimizer(
        learning_rate=learning_rate, numbers=numbers, factory=factory, choices=tuple(choices)
    )

"""Several optimizers, each for the parameters whose names a pattern matches."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.traverse_util
import optax
from jaxtyping import Array, Float

from t5lite.core.errors import UserError
from t5lite.core.numbers import numeric, static
from t5lite.core.patterns import check_patterns, first_matches
from t5lite.optimizers.optimizer import Optimizer
from t5lite.optimizers.schedules import StepNumber

_OWNER = "OptimizersByPattern.optimizers"


@numeric
class OptimizersByPattern:
    """An optimizer made of others; each updates the parameters that its pattern matches first.

    An optimizer sees its own parameters alone: norms over all parameters, as of `optax.fromage` or
    of a chain that clips, are over those. The learning rate that a step reports is the first one's.

    Args:
        optimizers: with their schedules.
        patterns: one of each.
    """

    optimizers: tuple[Optimizer, ...]
    patterns: tuple[str, ...] = static()

    def check(self, trained: Iterable[str]) -> None:
        """Checks the patterns against the names of the parameters that train.

        Raises:
            UserError: if one of them has no optimizer, or an optimizer has none of them.
        """
        first_matches(_OWNER, self.patterns, trained)

    def at(
        self, step: StepNumber, param_axes: Any
    ) -> tuple[Float[Array, ""], optax.GradientTransformationExtraArgs]:
        """Returns the learning rate of the first optimizer, and the transformation of all."""
        axes = flax.traverse_util.flatten_dict(param_axes, sep="/")
        number_of = first_matches(_OWNER, self.patterns, axes)
        rates = []
        inner = []
        for number, optimizer in enumerate(self.optimizers):
            own = {name: axes[name] for name in axes if number_of[name] == number}
            nested = flax.traverse_util.unflatten_dict(own, sep="/")
            rate, transformation = optimizer.at(step, nested)
            rates.append(rate)
            inner.append((optimizer, transformation))
        return rates[0], _parted(inner, number_of)

    def loss_argument(
        self, transformation: Any, mean_loss: Callable[[], Float[Array, ""]]
    ) -> dict[str, Any]:
        """Returns the argument `value` for those optimizers that take the loss."""
        del transformation
        return {"value": mean_loss()}


def optimizers_by_pattern(*, optimizers: Sequence[Any]) -> OptimizersByPattern:
    """Returns an optimizer made of others, each for the parameters that its pattern matches first.

    Args:
        optimizers: pairs of a regular expression and an optimizer, such as ('.*/scale', @AdamW());
            the first pattern that matches the whole name of a parameter applies.

    Raises:
        UserError: if they are no such pairs.
    """
    for pair in optimizers:
        fits = isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[1], Optimizer)
        if not fits:
            raise UserError(
                f"{_OWNER} must be pairs of a pattern and an optimizer, such as ('.*', @AdamW()), "
                f"got {pair!r}"
            )
    check_patterns(_OWNER, [pair[0] for pair in optimizers])
    return OptimizersByPattern(
        optimizers=tuple(pair[1] for pair in optimizers),
        patterns=tuple(pair[0] for pair in optimizers),
    )


def _parted(
    inner: Sequence[tuple[Optimizer, Any]], number_of: dict[str, int]
) -> optax.GradientTransformationExtraArgs:
    """Applies each transformation to its own parameters; the state has one state for each."""

    def part(tree: Any, number: int) -> Any:
        flat = flax.traverse_util.flatten_dict(tree, sep="/")
        own = {name: leaf for name, leaf in flat.items() if number_of[name] == number}
        return flax.traverse_util.unflatten_dict(own, sep="/")

    def init(params: Any) -> dict[str, Any]:
        return {
            f"optimizer_{number}": transformation.init(part(params, number))
            for number, (_, transformation) in enumerate(inner)
        }

    def update(
        grads: Any, state: dict[str, Any], params: Any | None = None, *, value: Any
    ) -> tuple[Any, dict[str, Any]]:
        assert params is not None, "optimizers may need the parameters"
        updates: dict[str, Any] = {}
        new: dict[str, Any] = {}
        for number, (optimizer, transformation) in enumerate(inner):
            key = f"optimizer_{number}"
            extra = optimizer.loss_argument(transformation, lambda: value)
            made, new[key] = transformation.update(
                part(grads, number), state[key], part(params, number), **extra
            )
            updates |= flax.traverse_util.flatten_dict(made, sep="/")
        return flax.traverse_util.unflatten_dict(updates, sep="/"), new

    return optax.GradientTransformationExtraArgs(init, update)

"""Which parameters train alone in the first steps of a run, as part of its one program."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.core.errors import UserError
from t5lite.core.fields import check_fields, field_name
from t5lite.core.lazy import name_of
from t5lite.core.numbers import Number, numeric, static
from t5lite.core.patterns import check_patterns, matches
from t5lite.optimizers.schedules import StepNumber
from t5lite.training.trainable import trainable_names


@numeric
class TrainFirst:
    """Parameters that train alone in the first steps, such as those that a checkpoint did not have.

    Until then the updates of the others are computed and withheld, so they keep their values to the
    bit. Their gradients count in gradient norms and in the optimizer's state, as with a learning
    rate of 0; `train.trainable` leaves parameters out of both.

    Args:
        parameters: regular expressions; the parameters whose whole name one of them matches.
        steps: number of steps of the run, those before a restart included.

    Raises:
        UserError: if a pattern is no regular expression, or the number of steps is not whole.
    """

    parameters: Sequence[str] = static()
    steps: Number

    def __post_init__(self) -> None:
        check_patterns(field_name(self, "parameters"), self.parameters)
        # Lists, as gin files have them, could not be part of a compiled program's identity.
        object.__setattr__(self, "parameters", tuple(self.parameters))
        rule = "a whole number from 1"
        check_fields(self, ("steps",), rule, lambda n: n >= 1 and n % 1 == 0)

    def check(self, trained: Iterable[str]) -> None:
        """Checks the patterns against the names of the parameters that train.

        Raises:
            UserError: if a pattern matches none of them, or no other parameter is left.
        """
        names = sorted(trained)
        owner = field_name(self, "parameters")
        if trainable_names(owner, self.parameters, names) == names:
            raise UserError(
                f"{owner} must leave out some of the parameters that train, got "
                f"{list(self.parameters)}, which match all {len(names)}; bind none"
            )

    def chosen(self, step: StepNumber, new: Any, old: Any) -> Any:
        """Returns the leaves of `new` for parameters that train at a step, of `old` for others.

        >>> first = TrainFirst(parameters=("b/.*",), steps=2)
        >>> new, old = {"a": {"x": 1.0}, "b": {"x": 1.0}}, {"a": {"x": 0.0}, "b": {"x": 0.0}}
        >>> [float(first.chosen(step, new, old)["a"]["x"]) for step in range(3)]
        [0.0, 0.0, 1.0]
        """

        def choose(path: Any, new: Any, old: Any) -> Any:
            if matches(name_of(path), self.parameters):
                return new
            return jnp.where(step < self.steps, old, new)

        return jax.tree_util.tree_map_with_path(choose, new, old)

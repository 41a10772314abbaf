"""The learned weights of the tasks of a mixture, which a loss reads."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from t5lite.models.config import T5Config
from t5lite.models.initializers import ConstantInit, parameter


class WithTaskWeights(nn.Module):
    """What all models share: a log-variance for each of `T5Config.num_weighted_tasks`.

    Parameters:
        task_weights/log_variances [tasks], zeros, if there are any.
    """

    config: T5Config

    # NOTE: not in `setup`, which subclasses have.
    @nn.compact
    def log_variances(self) -> Float[Array, "tasks"]:
        """Returns the log-variance of each task."""
        found: Float[Array, "tasks"] = _LogVariances(
            self.config.num_weighted_tasks, name="task_weights"
        )()
        return found

    def init_task_weights(self) -> None:
        """Makes the parameters, in the first call of a model."""
        if self.is_initializing() and self.config.num_weighted_tasks:
            self.log_variances()


class _LogVariances(nn.Module):
    """Parameters without a computation."""

    count: int

    @nn.compact
    def __call__(self) -> Float[Array, "tasks"]:
        init = parameter(ConstantInit(0.0), ("tasks",))
        values: Any = self.param("log_variances", init, (self.count,))
        return values

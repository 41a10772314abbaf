"""An exponential moving average of the parameters, as part of the state of a run."""

from typing import Any

import jax
import jax.numpy as jnp

from t5lite.core.fields import check_fields
from t5lite.core.numbers import Number, numeric
from t5lite.optimizers.schedules import StepNumber


@numeric
class MovingAverage:
    """A mean of the parameters after all steps, in which later steps have more weight.

    A run that has one evaluates it and ranks its checkpoints by it, and training itself never reads
    it. It starts as the first parameters, it is float32 whatever dtype they have, and a bad step
    does not change it. The effective decay rises: it is min(decay, (1 + step) / (ramp_steps +
    step)), where `step` counts the steps of the run before.

    Args:
        decay: the weight of the average so far against the new parameters, in [0, 1).
        ramp_steps: the larger, the longer the first parameters are forgotten quickly; 1 for a
            constant decay.

    Raises:
        UserError: if a number is out of range.

    Source: tf.train.ExponentialMovingAverage with num_updates, where `ramp_steps` is 10.
    """

    decay: Number = 0.999
    ramp_steps: Number = 10

    def __post_init__(self) -> None:
        check_fields(self, ("decay",), "in [0, 1)", lambda x: 0 <= x < 1)
        check_fields(self, ("ramp_steps",), "at least 1", lambda n: n >= 1)

    def updated(self, average: Any, params: Any, step: StepNumber) -> Any:
        """Returns the average after one more step.

        Args:
            params: after that step.
            step: number of steps before it.

        >>> half = MovingAverage(decay=0.5, ramp_steps=1)
        >>> float(half.updated({"x": jnp.float32(1.0)}, {"x": jnp.float32(3.0)}, 0)["x"])
        2.0
        """
        done = jnp.asarray(step, jnp.float32)
        rate = 1.0 - jnp.minimum(self.decay, (1.0 + done) / (self.ramp_steps + done))
        # As a difference, so that parameters which do not change equal their average.
        return jax.tree.map(lambda a, p: a + rate * (p.astype(jnp.float32) - a), average, params)

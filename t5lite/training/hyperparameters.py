"""The numbers of a run, which enter the compiled step as inputs."""

from t5lite.core.numbers import Number, numeric
from t5lite.models.losses import CrossEntropy
from t5lite.optimizers.optimizer import Optimizer


@numeric
class Hyperparameters:
    """What may differ between runs of one program.

    Args:
        optimizer: with its schedule.
        loss: what is minimised.
        seed: of initial parameters and dropout, an np.int32.
        dropout_rate: None compiles no dropout in.
        max_gradient_norm: gradients of a larger global norm are scaled down to it; None for no
            limit.
    """

    optimizer: Optimizer
    loss: CrossEntropy
    seed: Number
    dropout_rate: Number | None
    max_gradient_norm: Number | None

"""The numbers of a run that are inputs of the compiled step.

They are the numbers of the learning rate's schedule; the arguments of the optimizer whose defaults
are floats, or tuples of floats, or that are bound to floats; the numbers of the loss; and
`train.seed`, `T5Config.dropout_rate` and `train.max_gradient_norm`. One program serves all values
of them; no dropout (a rate of 0) and no clipping (None) are other programs. All other numbers, such
as those of `T5Config` and of optax schedules, are constants of the program.
"""

from t5lite.core.numbers import Number, numeric
from t5lite.losses.loss import Loss
from t5lite.optimizers.optimizer import Optimizer


@numeric
class Hyperparameters:
    """The inputs of the step besides state and batch; runs of one program may differ in them.

    Args:
        optimizer: with its schedule.
        loss: the loss that is minimised.
        seed: of initial parameters and dropout, an np.int32.
        dropout_rate: None compiles no dropout.
        max_gradient_norm: gradients with a larger global norm are scaled down to it; None compiles
            no clipping.
    """

    optimizer: Optimizer
    loss: Loss
    seed: Number
    dropout_rate: Number | None
    max_gradient_norm: Number | None

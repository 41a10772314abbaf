"""The numbers of a run that are inputs of the compiled step.

They are the numbers of the learning rate's schedule; the arguments of the optimizer whose defaults
are floats, or tuples of floats, or that are bound to floats; the numbers of the loss; and
`train.seed`, `T5Config.dropout_rate`, `train.max_gradient_norm` and the numbers of `BadSteps`,
`TrainFirst`, `LayerRates`, `MovingAverage` and `RankBudget`. One program serves all values of them;
no dropout (a rate of 0), no clipping, no bad steps, nothing that trains first, no rates by layer,
no average and no budget of ranks (None) are other programs. All other numbers, such as those of
`T5Config` and of optax schedules, are constants of the program.
"""

from t5lite.core.numbers import Number, numeric
from t5lite.losses.loss import Loss
from t5lite.optimizers.by_pattern import OptimizersByPattern
from t5lite.optimizers.optimizer import Optimizer
from t5lite.training.bad_steps import BadSteps
from t5lite.training.layer_rates import LayerRates
from t5lite.training.moving_average import MovingAverage
from t5lite.training.rank_budget import RankBudget
from t5lite.training.train_first import TrainFirst


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
        bad_steps: which steps leave the state as it was; None compiles no such check.
        train_first: which parameters train alone in the first steps; None compiles no choice.
        layer_rates: factors of the updates by layer; None compiles none.
        moving_average: of the parameters that train; None compiles none.
        rank_budget: of AdaLoRA; None compiles none.
    """

    optimizer: Optimizer | OptimizersByPattern
    loss: Loss
    seed: Number
    dropout_rate: Number | None
    max_gradient_norm: Number | None
    bad_steps: BadSteps | None = None
    train_first: TrainFirst | None = None
    layer_rates: LayerRates | None = None
    moving_average: MovingAverage | None = None
    rank_budget: RankBudget | None = None

"""The losses of single examples: sums over the targets of each, from a batch at a time."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from t5lite.core.batches import Batch, targets_of, writing_side
from t5lite.core.examples import Example
from t5lite.core.numbers import as_inputs
from t5lite.data.batching.features import Layout, batch_of
from t5lite.losses.evaluation import row_sums
from t5lite.losses.loss import Loss
from t5lite.models.architectures import ModelApply
from t5lite.models.model import Model
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import batch_sharding, check_lengths, local_rows, make_global

# By name, one number per example.
ExampleSums = dict[str, np.ndarray]
# From parameters and at most a batch of examples to the sums of each row.
SumExamples = Callable[[Any, Sequence[Example]], dict[str, jax.Array]]


def make_sum_examples(
    model: Model,
    layout: Layout,
    loss: Loss,
    mesh: DeviceMesh,
    *,
    batch_size: int,
    counted: Callable[[np.ndarray], np.ndarray] | None,
) -> SumExamples:
    """Returns a function that evaluates one batch; rows without an example are padding.

    Args:
        counted: from target tokens to which of them count; None for all.

    Raises:
        UserError: if the mesh does not divide the batch or the lengths.
    """
    sharding = batch_sharding(mesh, batch_size, owner="batch_size of the evaluation")
    check_lengths(mesh, layout.lengths)
    to_global = make_global(sharding, batch_size)
    local = local_rows(sharding, batch_size)

    @functools.partial(jax.jit, out_shardings=jax.NamedSharding(mesh.devices, jax.P()))
    def eval_step(params: Any, loss: Any, batch: Batch) -> dict[str, jax.Array]:
        return row_sums(loss, ModelApply(model), params, batch)

    def sum_examples(params: Any, examples: Sequence[Example]) -> dict[str, jax.Array]:
        rows = [[examples[row]] if row < len(examples) else [] for row in local]
        batch = batch_of(layout, rows)
        if counted is not None:
            ids, weights = targets_of(batch)
            name = f"{writing_side(batch)}_loss_weights"
            batch = {**batch, name: weights * counted(ids)}
        return eval_step(params, as_inputs(loss), to_global(batch))

    return sum_examples

"""Teacher-forced scores of a whole split: loss, perplexity and accuracy."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.numbers import as_inputs, check_number
from t5lite.data.features import Layout
from t5lite.data.mixture import Mixture
from t5lite.data.stream import eval_batches
from t5lite.data.task import Task
from t5lite.inference.sampling import greedy
from t5lite.models.architectures import Batch, EncoderDecoder, Model, targets_of, writing_side
from t5lite.models.batch_loss import batch_loss
from t5lite.models.losses import CrossEntropy, means
from t5lite.parallel.dispatch import settle
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import batch_sharding, check_lengths, local_rows, make_global, on_mesh

Evaluate = Callable[[Any], dict[str, float]]
Sums = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `t5lite eval` scores; None takes the run's own value.

    Args:
        split: of the task's source.
        batch_size: rows scored at a time.
    """

    split: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_number("evaluate.batch_size", self.batch_size, "at least 1", lambda n: n >= 1)


def make_evaluate(
    model: Model,
    task: Task | Mixture,
    layout: Layout,
    loss: CrossEntropy,
    mesh: DeviceMesh,
    *,
    split: str,
    batch_size: int,
    counted: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Evaluate:
    """Returns a function from parameters to the scores of all of `split`.

    Every target of the split counts once, whatever the batch size and the mesh. The scores are
    `loss_nats_per_token` (with z-loss and smoothing), `cross_entropy_nats_per_token`, `perplexity`
    (its exponential), `accuracy_fraction`, `target_tokens` and `examples`. Of a mixture they are
    those of all tasks together, and once more of each, named `TASK/SCORE`. Where a task names
    metrics, its targets are written greedily, and the metrics' scores are among its own.

    Args:
        counted: from target tokens to which of them count; None for all.

    Raises:
        UserError: where the mesh does not divide the batch, or the split is empty.
    """
    # What is wrong with the split is said before anything is compiled.
    for part in task.tasks:
        part.tokens(split)
    sharding = batch_sharding(mesh, batch_size, owner="batch_size of the evaluation")
    check_lengths(mesh, layout.lengths)
    rows, place = local_rows(sharding, batch_size), make_global(sharding, batch_size)

    def eval_step(params: Any, loss: CrossEntropy, batch: Batch) -> dict[str, jax.Array]:
        sums, (_, weights) = batch_loss(model, params, batch, loss), targets_of(batch)
        return {**sums, "examples": (weights > 0).any(axis=1).sum().astype(float)}

    compiled = jax.jit(eval_step)

    def sums_of(params: Any, part: Task) -> list[Sums]:
        sums: list[dict[str, jax.Array]] = []
        for batch in eval_batches(part, split, layout, rows=rows, batch_size=batch_size):
            if counted is not None:
                targets, weights = targets_of(batch)
                name = f"{writing_side(batch)}_loss_weights"
                batch = {**batch, name: weights * counted(targets)}
            sums.append(compiled(params, as_inputs(loss), place(batch)))
            settle(sums, mesh)
        if not sums:
            raise UserError(f"split {split!r} of task {part.name!r} holds no example to score")
        fetched: list[Sums] = jax.device_get(sums)
        return fetched

    @functools.cache
    def writer(length: int) -> Any:
        assert isinstance(model, EncoderDecoder)
        stop_ids = (task.vocabulary.eos_id,)
        return jax.jit(
            lambda params, batch: (
                greedy(model, params, batch, length=length, stop_ids=stop_ids),
                batch["decoder_target_tokens"],
                batch["decoder_segment_ids"],
            ),
            out_shardings=jax.NamedSharding(mesh.devices, jax.P()),
        )

    def texts_of(params: Any, part: Task) -> tuple[list[str], list[str]]:
        targets: list[str] = []
        predictions: list[str] = []
        if part.metrics:
            write, decode = writer(part.objective.targets_length), part.vocabulary.decode
            for batch in eval_batches(part, split, layout, rows=rows, batch_size=batch_size):
                written, wanted, segments = jax.device_get(write(params, place(batch)))
                used = (segments > 0).any(axis=1)
                targets += [decode(ids[ids > 0]) for ids in wanted[used]]
                predictions += [decode(ids[ids > 0]) for ids in written[used]]
        return targets, predictions

    def evaluate(params: Any) -> dict[str, float]:
        with on_mesh(mesh):
            parts = {part.name: sums_of(params, part) for part in task.tasks}
        # Written token by token, so there is no length to split.
        with on_mesh(mesh.without("length")):
            written = {part.name: part.score(*texts_of(params, part)) for part in task.tasks}
        scores = _scores([sums for part in parts.values() for sums in part])
        if len(parts) == 1:
            return {**scores, **written[task.tasks[0].name]}
        for name, sums in parts.items():
            of_task = {**_scores(sums), **written[name]}
            scores |= {f"{name}/{score}": value for score, value in of_task.items()}
        return scores

    return evaluate


def _scores(sums: list[Sums]) -> dict[str, float]:
    scores = means(sums)
    return {
        **scores,
        "perplexity": math.exp(min(scores["cross_entropy_nats_per_token"], 700.0)),
        "examples": math.fsum(float(s["examples"]) for s in sums),
    }

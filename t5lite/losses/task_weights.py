"""The cross-entropy of a mixture of tasks, each with a weight of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from t5lite.core.batches import Batch, targets_of, writing_side
from t5lite.core.errors import UserError
from t5lite.core.fields import field_error, field_name
from t5lite.core.numbers import Number, check_number, numeric, static
from t5lite.losses.chunks import sum_over_chunks
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import Apply, Loss, LossSums


@numeric
class TaskWeights:
    """Cross-entropy whose targets are weighted by their tasks, which may share a packed row.

    With fixed weights, a target has the loss w H: H is its cross-entropy, and w the weight of its
    task. With learned ones it has e^-s H + s / 2, where s, the log-variance of its task, is a
    parameter that starts at 0. The mean is over all targets: weights multiply the shares of the
    tasks in the mixture. Evaluation scores H.

    Args:
        tasks: the names of the tasks of `train.task`, in their order.
        weights: of these tasks; None learns them, with `T5Config.num_weighted_tasks`.
        cross_entropy: H, with its label smoothing, z-loss and chunks.

    Raises:
        UserError: for names that are not strings, or weights that are negative or too few.

    Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses",
    section 3.3, with s = log of the squared noise.
    """

    tasks: Sequence[str] = static()
    weights: Sequence[Number] | None = None
    cross_entropy: CrossEntropy = CrossEntropy()

    def __post_init__(self) -> None:
        if not isinstance(self.tasks, list | tuple) or not all(
            isinstance(name, str) for name in self.tasks
        ):
            raise field_error(self, "tasks", "a list of names")
        # gin passes lists, which are not hashable.
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if isinstance(self.weights, list | tuple):
            owner = field_name(self, "weights")
            if len(self.weights) != len(self.tasks):
                rule = f"{len(self.tasks)} numbers, one for each of {field_name(self, 'tasks')}"
                raise UserError(f"{owner} must be {rule}, got {len(self.weights)}")
            for weight in self.weights:
                check_number(owner, weight, "at least 0", lambda x: x >= 0)
            object.__setattr__(self, "weights", tuple(self.weights))

    @property
    def learned(self) -> bool:
        """Whether the weights are parameters of the model."""
        return self.weights is None

    @property
    def in_evaluation(self) -> Loss:
        """The loss that evaluation scores, whose examples have one task at a time."""
        return self.cross_entropy

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns the sums of the cross-entropy; `TASK/nats`, `TASK/tokens` and `TASK/weight`.

        The last is the weight of the task's tokens, summed over them.
        """
        hidden, statistics = apply.hidden(params, batch, key)
        targets, weights = targets_of(batch)
        task_ids = batch[f"{writing_side(batch)}_task_ids"]
        added = jnp.zeros(len(self.tasks))
        if self.weights is None:
            log_variances = apply.head(params, "log_variances")
            factors = jnp.exp(-log_variances)
            added = 0.5 * log_variances
        else:
            factors = jnp.stack([jnp.asarray(weight, jnp.float32) for weight in self.weights])

        def sums_of(
            x: Float[Array, "b l e"],
            targets: Int[Array, "b l"],
            weights: Any,
            task_ids: Int[Array, "b l"],
        ) -> LossSums:
            logits = apply.logits(params, x)
            sums = self.cross_entropy.sums(logits, targets, weights, by_row=by_row)
            loss = jnp.zeros_like(sums["loss"])
            of_tasks: LossSums = {}
            for number, name in enumerate(self.tasks):
                own = weights * (task_ids == 1 + number)
                part = self.cross_entropy.sums(logits, targets, own, by_row=by_row)
                loss = loss + factors[number] * part["loss"] + added[number] * part["tokens"]
                of_tasks |= {
                    f"{name}/nats": part["cross_entropy"],
                    f"{name}/tokens": part["tokens"],
                    f"{name}/weight": factors[number] * part["tokens"],
                }
            return {**sums, "loss": loss, **of_tasks}

        chunks = self.cross_entropy.chunks
        sums = sum_over_chunks(sums_of, chunks, hidden, targets, weights, task_ids)
        return self.cross_entropy.with_experts(sums, statistics, weights, by_row=by_row)

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the cross-entropy and the weight of each task, besides those of experts."""
        means = self.cross_entropy.means(sums)
        for name in self.tasks:
            tokens = max(sums[f"{name}/tokens"], 1.0)
            means[f"{name}/cross_entropy_nats_per_token"] = sums[f"{name}/nats"] / tokens
            means[f"{name}/weight"] = sums[f"{name}/weight"] / tokens
            means[f"{name}/target_tokens"] = sums[f"{name}/tokens"]
        return means

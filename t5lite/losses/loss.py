"""The protocol of losses, and how the sums that they return become metrics.

A loss returns sums over a batch, so that microbatches, devices and steps add up exactly. Training
minimises the sum `loss` divided by the sum `tokens` of the whole batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Key

from t5lite.core.batches import Batch
from t5lite.core.errors import UserError

# By name; of a batch [], or of each of its rows [b].
LossSums = dict[str, Float[Array, "..."]]
# By name, of one stack of layers after another; empty unless the model has experts.
LayerStatistics = dict[str, Float[Array, "layers b"]]

# Sums that every loss returns, and names that the step adds itself.
REQUIRED_SUMS = ("loss", "tokens")
STEP_METRICS = (
    "input_tokens",
    "learning_rate",
    "gradient_norm",
    "norm_bound",
    "update_norm",
    "bad_steps",
    "bad_in_a_row",
    "step_loss",
    "loss_rise",
    "mean_rank",
)
# Names and units under which sums are reported per target token.
TOKEN_METRICS = {
    "loss": "loss_nats_per_token",
    "cross_entropy": "cross_entropy_nats_per_token",
    "z_loss": "z_loss_nats_per_token",
    "correct": "accuracy_fraction",
}


@runtime_checkable
class FrozenApply(Protocol):
    """Another model of the run, whose parameters are constants, as functions of the run's batches.

    It is deterministic, and reads each example in the rows that it was trained on.
    """

    def hidden(self, batch: Batch) -> tuple[Float[Array, "b l e"], Bool[Array, "b l"]]:
        """Returns the input of `logits` for each target, and which targets the model predicts."""

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns logits, in the order of the trained model's, of a part of what `hidden` returned.

        What only the trained model has logits for has the probability 0.
        """


@runtime_checkable
class Apply(Protocol):
    """The model as functions of its parameters. Every call is independent.

    A loss may call it several times, with other parameters, batches or keys. A key turns dropout
    on; without one the result is deterministic. `frozen` are other models of the run, by name:
    those that the loss `needs` while it trains, none in evaluation.

    A batch may hold offsets, which are added to embedded tokens: arrays of the names and shapes
    that `embedded` returns.
    """

    @property
    def frozen(self) -> Mapping[str, FrozenApply]: ...

    def __call__(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> Float[Array, "b l v"]:
        """Returns the logits of the whole batch."""

    def hidden(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b l e"], LayerStatistics]:
        """Returns the input of `logits`, and the statistics of experts of each layer and row."""

    def logits(self, params: Any, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns the logits of a part of what `hidden` returned."""

    def embedded(self, params: Any, batch: Batch) -> dict[str, Float[Array, "b l e"]]:
        """Returns the embedded tokens of each stack, by the names of their offsets in a batch."""

    def head(self, params: Any, name: str, *arguments: Any) -> Any:
        """Returns the result of another method of the model, such as `transitions` of a chain."""


@runtime_checkable
class Loss(Protocol):
    """What `train.loss` binds: a class decorated with `core.numbers.numeric`.

    Its numbers are inputs of the compiled step, so that a sweep over them compiles once; fields
    declared with `static()` are constants of the program.

    A loss that compares the model with others has two more attributes: `needs`, their names, a
    constant of the class such as ("teacher",); and `in_evaluation`, the loss that evaluation scores
    instead, because it has no other models. So may others that evaluation cannot score.

    A loss of classes that depend on each other has the constant `structure`, the
    `Classes.structure` of its model; "pairs" is that of a model with `T5Config.next_sentence`. A
    loss with the attribute `tasks` names the tasks of the run, and finds the number of each
    target's task in `encoder_task_ids` or `decoder_task_ids`, counted from 1.
    """

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns sums over the batch, at least `loss` and `tokens`, the weight of its targets.

        Args:
            key: randomness of this step; None in evaluation.
            by_row: whether to return the sums of each row instead, which evaluation needs. A term
                that is of no single row is split among the rows.
        """

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns metrics from sums over several steps, named with their units.

        The sums in `TOKEN_METRICS` are reported without it; a name returned here takes precedence.
        """


def check_loss(loss: Loss, dropout_rate: float) -> None:
    """Checks that a loss is a pytree, whose numbers can be inputs of the program.

    Args:
        dropout_rate: of the model; a loss with a true attribute `needs_dropout` needs one over 0.

    Raises:
        UserError: if it is not, needs dropout and has none, or needs other models and evaluation
            cannot score it.
    """
    if jax.tree.leaves(loss) == [loss]:
        raise UserError(
            f"train.loss must be a class decorated with t5lite.core.numbers.numeric, got "
            f"{type(loss).__name__}: its numbers are inputs of the compiled step"
        )
    if getattr(loss, "needs_dropout", False) and not dropout_rate:
        raise UserError(
            f"T5Config.dropout_rate must be over 0 with train.loss = @{type(loss).__name__}(), "
            "which compares passes with different dropout, got 0; bind it, or another loss"
        )
    if needed_models(loss) and not hasattr(loss, "in_evaluation"):
        raise UserError(
            f"{type(loss).__name__} needs other models, so it must have an attribute "
            "in_evaluation, got none; evaluation scores that loss, such as CrossEntropy()"
        )


def check_structure(loss: Loss, structure: str) -> None:
    """Checks that a loss is for what a model decides.

    Args:
        structure: `Classes.structure`; "independent" for tokens, "pairs" for sentences besides.

    Raises:
        UserError: naming both.
    """
    wanted = getattr(loss, "structure", "independent")
    if wanted != structure:
        losses = {
            "chain": "CRF",
            "span": "SpanCrossEntropy",
            "ranking": "ListwiseSoftmax",
            "pairs": "NextSentence",
        }
        remedy = f"train.loss = @{losses.get(structure, 'CrossEntropy')}()"
        fields = {"pairs": "T5Config.next_sentence"}
        given = fields.get(structure, f"Classes.structure={structure!r}")
        needed = fields.get(wanted, f"Classes.structure={wanted!r}")
        raise UserError(
            f"train.loss {type(loss).__name__} needs {needed}, got {given}; bind {remedy}"
        )


def check_tasks(loss: Loss, tasks: Sequence[str], num_weighted: int) -> None:
    """Checks that a loss with weights of tasks, if it is one, has one for each.

    Args:
        tasks: the names of the tasks of the run.
        num_weighted: `T5Config.num_weighted_tasks`.

    Raises:
        UserError: naming what differs.
    """
    kind = type(loss).__name__
    named = getattr(loss, "tasks", None)
    if named is not None and (tuple(named) != tuple(tasks) or len(tasks) < 2):
        raise UserError(
            f"{kind}.tasks must name the tasks of a mixture, {list(tasks)}, in this order, got "
            f"{list(named)}"
        )
    wanted = len(named) if named is not None and getattr(loss, "learned", False) else 0
    if num_weighted != wanted:
        raise UserError(
            f"T5Config.num_weighted_tasks must be {wanted} with train.loss = @{kind}(), the tasks "
            f"whose weights are learned, got {num_weighted}"
        )


def check_teacher_maps(loss: Loss, width: int | None) -> None:
    """Checks that maps to the width of a teacher are used.

    Args:
        width: `T5Config.teacher_embed_dim`.

    Raises:
        UserError: if the loss has no use for them, as one without `compares_layers`.
    """
    if width is not None and not getattr(loss, "compares_layers", False):
        raise UserError(
            f"T5Config.teacher_embed_dim must be None with train.loss = @{type(loss).__name__}(), "
            f"which compares no layers, got {width}"
        )


def needed_models(loss: Loss) -> tuple[str, ...]:
    """Returns the names of the other models that a loss compares the trained one with."""
    return tuple(getattr(loss, "needs", ()))


def evaluation_loss(loss: Loss) -> Loss:
    """Returns the loss that evaluation scores: its `in_evaluation`, or the same."""
    scored: Loss = getattr(loss, "in_evaluation", loss)
    return scored


def check_sums(loss: Loss, sums: LossSums, batch: Batch, *, by_row: bool = False) -> None:
    """Checks the sums that a loss returned for a batch, while they are traced.

    Raises:
        UserError: if a required sum is missing, a name is taken, or a shape is wrong.
    """
    owner = type(loss).__name__
    if missing := [name for name in REQUIRED_SUMS if name not in sums]:
        raise UserError(
            f"{owner} must return the sums {' and '.join(REQUIRED_SUMS)}, got {sorted(sums)}; add "
            f"{missing[0]!r}"
        )
    if taken := [name for name in STEP_METRICS if name in sums]:
        raise UserError(f"{owner} returns a sum {taken[0]!r}, a name of the step's own; rename it")
    rows = next(iter(batch.values())).shape[:1]
    for name, value in sums.items():
        if value.shape != (rows if by_row else ()):
            raise UserError(
                f"{owner} must return {name!r} with shape {rows if by_row else ()} if by_row is "
                f"{by_row}, got {value.shape}"
            )


def mean_metrics(loss: Loss, sums: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the metrics of several steps, or of several examples: sums divided on the host."""
    total = {name: math.fsum(float(s[name]) for s in sums) for name in sums[0]}
    tokens = max(total["tokens"], 1.0)
    standard = {name: total[key] / tokens for key, name in TOKEN_METRICS.items() if key in total}
    return {**standard, "target_tokens": total["tokens"], **loss.means(total)}

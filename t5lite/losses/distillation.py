"""Knowledge distillation: a model learns the predictions of a teacher besides the targets."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from t5lite.core.batches import Batch, targets_of
from t5lite.core.errors import UserError
from t5lite.core.fields import check_fields, field_name
from t5lite.core.numbers import Number, numeric
from t5lite.losses.chunks import sum_over_chunks
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import Apply, Loss, LossSums


@numeric
class Distillation:
    """Cross-entropy mixed with the divergence of the model's predictions from a teacher's.

    A target that the teacher predicts has the loss (1 - w) H + w T^2 KL(p || q): H is its
    cross-entropy, and p and q are the softmax of the teacher's and the model's logits divided by T.
    A target that the teacher does not predict has the loss H.

    Args:
        weight: w, in [0, 1].
        temperature: T, over 0. The factor T^2 keeps the gradient of the divergence comparable
            between temperatures.
        hidden_weight: weight of the squared difference between what the logits of model and teacher
            are computed from, a mean over the width, which both must share; None compiles no such
            term.
        cross_entropy: H, with its label smoothing. Its z-loss and the losses of experts are added
            in full, and its `chunks` hold for the teacher's logits too. It is what evaluation
            scores.

    Raises:
        UserError: if a number is out of range.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", section 2; for
    hidden states Romero et al., "FitNets", equation 3, without its regressor.
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    weight: Number = 0.5
    temperature: Number = 2.0
    hidden_weight: Number | None = None
    cross_entropy: CrossEntropy = CrossEntropy()

    def __post_init__(self) -> None:
        check_fields(self, ("weight",), "in [0, 1]", lambda w: 0 <= w <= 1)
        check_fields(self, ("temperature", "hidden_weight"), "over 0", lambda x: x > 0)

    @property
    def in_evaluation(self) -> Loss:
        """The loss that evaluation scores, without a teacher."""
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
        """Returns `sums` of the model's and the teacher's logits, with those of hidden states.

        Raises:
            UserError: if `hidden_weight` is set and the widths differ.
        """
        teacher = apply.frozen["teacher"]
        hidden, statistics = apply.hidden(params, batch, key)
        theirs, known = teacher.hidden(batch)
        targets, weights = targets_of(batch)

        def sums_of(
            x: Float[Array, "b l e"],
            y: Float[Array, "b l teacher_embed"],
            targets: Int[Array, "b l"],
            weights: Any,
            known: Bool[Array, "b l"],
        ) -> LossSums:
            logits = apply.logits(params, x)
            return self.sums(logits, teacher.logits(y), targets, weights, known, by_row=by_row)

        chunks = self.cross_entropy.chunks
        sums = sum_over_chunks(sums_of, chunks, hidden, theirs, targets, weights, known)
        if self.hidden_weight is not None:
            self._check_widths(hidden, theirs)
            difference = hidden.astype(jnp.float32) - theirs.astype(jnp.float32)
            squares = jnp.mean(jnp.square(difference), axis=-1) * weights * known
            squares = jnp.sum(squares, 1 if by_row else None)
            loss = sums["loss"] + self.hidden_weight * squares
            sums = {**sums, "hidden_squares": squares, "loss": loss}
        return self.cross_entropy.with_experts(sums, statistics, weights, by_row=by_row)

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns what compares model and teacher, per target that the teacher predicts."""
        known = max(sums["distilled"], 1.0)
        means = {
            "distillation_nats_per_token": sums["distillation"] / known,
            "teacher_cross_entropy_nats_per_token": sums["teacher_cross_entropy"] / known,
            "distilled_tokens_fraction": sums["distilled"] / max(sums["tokens"], 1.0),
        }
        if "hidden_squares" in sums:
            means["hidden_mean_square"] = sums["hidden_squares"] / known
        return {**means, **self.cross_entropy.means(sums)}

    def sums(
        self,
        logits: Float[Array, "b l v"],
        teacher_logits: Float[Array, "b l v"],
        targets: Int[Array, "b l"],
        weights: Int[Array, "b l"] | Float[Array, "b l"],
        known: Bool[Array, "b l"],
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns weighted sums over the tokens of a batch, or of each of its rows.

        Args:
            known: the targets that the teacher predicts.

        Returns:
            The sums of `CrossEntropy`, of which `loss` is that of this class, and over the targets
            that the teacher predicts:
            distillation: KL(p || q), in nats.
            teacher_cross_entropy: minus the teacher's log-probability of them, in nats.
            distilled: sum of their weights.
        """
        sums = self.cross_entropy.sums(logits, targets, weights, by_row=by_row)
        weights_of_known = weights.astype(jnp.float32) * known
        of_known = self.cross_entropy.sums(logits, targets, weights_of_known, by_row=by_row)
        teacher_logits = teacher_logits.astype(jnp.float32)
        log_p = jax.nn.log_softmax(teacher_logits / self.temperature)
        log_q = jax.nn.log_softmax(logits.astype(jnp.float32) / self.temperature)
        divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
        teachers = self.cross_entropy.sums(teacher_logits, targets, weights_of_known, by_row=by_row)
        axis = 1 if by_row else None
        divergence = jnp.sum(divergence * weights_of_known, axis)
        replaced = of_known["loss"] - of_known["z_loss"]
        mixed = self.weight * (jnp.square(self.temperature) * divergence - replaced)
        return {
            **sums,
            "loss": sums["loss"] + mixed,
            "distillation": divergence,
            "teacher_cross_entropy": teachers["cross_entropy"],
            "distilled": jnp.sum(weights_of_known, axis),
        }

    def _check_widths(self, hidden: Array, theirs: Array) -> None:
        if hidden.shape[-1] != theirs.shape[-1]:
            raise UserError(
                f"{field_name(self, 'hidden_weight')} needs the same T5Config.embed_dim in model "
                f"and teacher, got {hidden.shape[-1]} and {theirs.shape[-1]}; bind "
                f"{field_name(self, 'hidden_weight')} = None"
            )

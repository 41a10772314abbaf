"""Models with constant parameters beside the one that trains, such as a teacher.

Their rows may differ from those of the batch: a decoder-only model reads the inputs and the targets
of an encoder-decoder in one row.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.batches import Batch, targets_of, writing_side
from t5lite.core.errors import UserError
from t5lite.models.architectures import ModelApply
from t5lite.models.model import Model

# The logit of what a model does not know. Minus infinity times the probability 0 would be NaN.
_NEVER = -1e9


class FrozenRows(NamedTuple):
    """A batch as another model reads it.

    Args:
        batch: of its own rows.
        positions: the position in them from which each target is predicted; None for its own.
        known: the targets that it predicts.
    """

    batch: Batch
    positions: Int[Array, "b l"] | None
    known: Bool[Array, "b l"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SameRows:
    """Rows of a model of the same kind as the one that trains: those of the batch.

    Args:
        unknown_eos: the end of sequence, if the model was trained without; None if it predicts it.
    """

    unknown_eos: int | None = None

    def __call__(self, batch: Batch) -> FrozenRows:
        """Returns the batch as the model reads it."""
        segments = batch[f"{writing_side(batch)}_segment_ids"]
        known = (segments > 0) & ~_ends(batch, segments, self.unknown_eos)
        return FrozenRows(batch, None, known)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinedRows:
    """Rows of a decoder-only model beside an encoder-decoder: of each example the inputs, without
    padding, and then the targets.

    A target is predicted from the token before it. The first of an example without inputs has none,
    unless there is a start token.

    Args:
        length: tokens of a row.
        start_token: before the inputs, in rows of one example; None for none.
        unknown_eos: as in `SameRows`.
    """

    length: int
    start_token: int | None = None
    unknown_eos: int | None = None

    def __call__(self, batch: Batch) -> FrozenRows:
        """Returns the batch as the model reads it.

        >>> batch = {
        ...     "encoder_input_tokens": [5, 6, 7, 0], "encoder_segment_ids": [1, 1, 2, 0],
        ...     "decoder_target_tokens": [8, 1, 9, 1], "decoder_segment_ids": [1, 1, 2, 2],
        ...     "decoder_loss_weights": [1, 1, 1, 1]}
        >>> batch = {name: jnp.array([row]) for name, row in batch.items()}
        >>> rows = JoinedRows(length=8, unknown_eos=1)(batch)
        >>> rows.batch["decoder_input_tokens"].tolist(), rows.batch["decoder_segment_ids"].tolist()
        ([[5, 6, 8, 1, 7, 9, 1, 0]], [[1, 1, 1, 1, 2, 2, 2, 0]])
        >>> rows.positions.tolist(), rows.known.tolist()
        ([[1, 2, 4, 5]], [[True, False, True, False]])
        """
        inputs = batch["encoder_input_tokens"]
        targets, _ = targets_of(batch)
        of_targets = batch["decoder_segment_ids"]
        segments = jnp.concatenate([batch["encoder_segment_ids"], of_targets], axis=1)
        tokens = jnp.concatenate([inputs, targets], axis=1)
        is_input = np.arange(tokens.shape[1]) < inputs.shape[1]
        # Padding comes last, and in each example the inputs first: the order is stable.
        padding_last = jnp.where(segments > 0, segments, np.iinfo(np.int32).max)
        order = jnp.argsort(padding_last, axis=1, stable=True)
        before = jnp.argsort(order, axis=1)[:, inputs.shape[1] :] - 1
        columns = {
            "decoder_input_tokens": jnp.take_along_axis(tokens, order, axis=1),
            "decoder_segment_ids": jnp.take_along_axis(segments, order, axis=1),
            "decoder_causal_attention": jnp.asarray(is_input, jnp.int32)[order],
        }
        if self.start_token is not None:
            has_example = jnp.any(segments > 0, axis=1, keepdims=True).astype(jnp.int32)
            first = {
                "decoder_input_tokens": has_example * self.start_token,
                "decoder_segment_ids": has_example,
                "decoder_causal_attention": has_example,
            }
            columns = {n: jnp.concatenate([first[n], x], axis=1) for n, x in columns.items()}
            before = before + 1
        rows = {name: x[:, : self.length] for name, x in columns.items()}
        positions = jnp.clip(before, 0, rows["decoder_segment_ids"].shape[1] - 1)
        segment_before = jnp.take_along_axis(rows["decoder_segment_ids"], positions, axis=1)
        known = (before == positions) & (segment_before == of_targets) & (of_targets > 0)
        known &= ~_ends(batch, of_targets, self.unknown_eos)
        return FrozenRows(rows, positions, known)


def _ends(batch: Batch, segments: Int[Array, "b l"], eos_id: int | None) -> Bool[Array, "b l"]:
    """Returns which targets are the end of sequence that ends an example."""
    targets, _ = targets_of(batch)
    if eos_id is None:
        return jnp.zeros(targets.shape, bool)
    after = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
    return (targets == eos_id) & (after != segments)


@dataclasses.dataclass(frozen=True)
class FrozenModel:
    """A model with its parameters; see `losses.loss.FrozenApply`.

    Args:
        rows: how it reads a batch.
        vocab_size: logits of the model that trains.
    """

    model: Model
    params: Any
    rows: SameRows | JoinedRows
    vocab_size: int

    def hidden(self, batch: Batch) -> tuple[Float[Array, "b l e"], Bool[Array, "b l"]]:
        """Returns the input of `logits` for each target, and which targets the model predicts."""
        rows = self.rows(batch)
        x, _ = ModelApply(self.model).hidden(self.params, rows.batch)
        if rows.positions is not None:
            x = jnp.take_along_axis(x, rows.positions[..., None], axis=1)
        return x, rows.known

    def recorded(
        self, batch: Batch
    ) -> tuple[Float[Array, "b l e"], Bool[Array, "b l"], dict[str, Float[Array, "..."]]]:
        """Returns what `hidden` does, and the outputs of all layers of each stack, by its name.

        Raises:
            UserError: if the model has rows of its own.
        """
        rows = self.rows(batch)
        if rows.positions is not None:
            raise UserError(
                "LayerDistillation needs a teacher of the model's kind, which reads the same rows, "
                f"got {type(self.model).__name__}; bind train.loss = @Distillation()"
            )
        x, _, outputs = ModelApply(self.model).recorded(self.params, rows.batch)
        return x, rows.known, outputs

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns logits in the order of the trained model's, of a part of `hidden`."""
        logits = ModelApply(self.model).logits(self.params, x)
        short = max(self.vocab_size - logits.shape[-1], 0)
        padding = ((0, 0), (0, 0), (0, short))
        return jnp.pad(logits, padding, constant_values=_NEVER)[..., : self.vocab_size]

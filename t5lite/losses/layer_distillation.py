"""Distillation of layers: the outputs of chosen layers follow those of a teacher's."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from t5lite.core.batches import Batch, targets_of
from t5lite.core.errors import UserError
from t5lite.core.fields import check_fields, field_error, field_name
from t5lite.core.numbers import Number, numeric, static
from t5lite.losses.distillation import Distillation
from t5lite.losses.loss import Apply, LayerStatistics, Loss, LossSums

# By the name of a stack, of one layer after another.
LayerOutputs = Mapping[str, Float[Array, "..."]]


@runtime_checkable
class RecordingApply(Protocol):
    """What `losses.loss.Apply` of this loss has besides."""

    def recorded(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b l e"], LayerStatistics, LayerOutputs]:
        """Returns what `hidden` does, and the outputs of all layers of each stack."""


@numeric
class LayerDistillation:
    """Distillation, and the squared difference of the outputs of chosen layers.

    Of each pair of layers the mean over the width and over the tokens of a row counts for each
    target of the row, so that it adds up to a mean over all targets.

    Args:
        layers: triples (stack, layer, layer of the teacher), counted from 1, such as
            [('encoder', 3, 6), ('encoder', 6, 12)].
        layer_weight: of the mean over these pairs.
        distillation: of the predictions, which evaluation scores without a teacher.

    Raises:
        UserError: if there is no triple, one is something else, or a number is out of range.

    Source: Romero et al., "FitNets", equation 3; for maps that all layers of a stack share Jiao et
    al., "TinyBERT", equation 8.
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher",)
    # See `check_teacher_maps`.
    compares_layers: ClassVar[bool] = True

    layers: Sequence[Any] = static()
    layer_weight: Number = 1.0
    distillation: Distillation = Distillation()

    def __post_init__(self) -> None:
        if not isinstance(self.layers, list | tuple) or not all(map(_is_pair, self.layers)):
            rule = "triples (stack, layer, teacher's layer), as in [('encoder', 3, 6)]"
            raise field_error(self, "layers", rule)
        if not self.layers:
            raise field_error(self, "layers", "at least one triple")
        # gin passes lists, which are not hashable.
        object.__setattr__(self, "layers", tuple(map(tuple, self.layers)))
        check_fields(self, ("layer_weight",), "at least 0", lambda x: x >= 0)

    @property
    def in_evaluation(self) -> Loss:
        """The loss that evaluation scores, without a teacher."""
        return self.distillation.in_evaluation

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns the sums of `distillation`, and `layer_squares`.

        Raises:
            UserError: if a layer does not exist, or widths differ without a map between them.
        """
        recording = _Recording(apply)
        sums = self.distillation(recording, params, batch, key, by_row=by_row)
        _, weights = targets_of(batch)
        tokens = jnp.sum(weights, axis=1, dtype=jnp.float32)
        squares = jnp.zeros_like(tokens)
        for stack, layer, of_teacher in self.layers:
            ours = self._output("model", recording.outputs, stack, layer)
            theirs = self._output("teacher", recording.teacher.outputs, stack, of_teacher)
            if recording.has_maps:
                ours = apply.head(params, "to_teacher", ours, stack)
            if ours.shape[-1] != theirs.shape[-1]:
                raise UserError(
                    f"{field_name(self, 'layers')} need the width of the teacher's {stack}, "
                    f"{theirs.shape[-1]}, got {ours.shape[-1]}; bind "
                    f"T5Config.teacher_embed_dim = {theirs.shape[-1]}"
                )
            difference = ours.astype(jnp.float32) - theirs.astype(jnp.float32)
            # A classifier's decoder reads the tokens of its encoder.
            segments = batch.get(f"{stack}_segment_ids", batch.get("encoder_segment_ids"))
            is_token = (segments > 0).astype(jnp.float32)
            of_rows = jnp.sum(jnp.mean(jnp.square(difference), axis=-1) * is_token, axis=1)
            squares = squares + of_rows / jnp.maximum(jnp.sum(is_token, axis=1), 1.0)
        of_layers = squares * tokens / len(self.layers)
        of_layers = of_layers if by_row else jnp.sum(of_layers)
        loss = sums["loss"] + self.layer_weight * of_layers
        return {**sums, "loss": loss, "layer_squares": of_layers}

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics of distillation, and the mean square of the layers' differences."""
        mean = sums["layer_squares"] / max(sums["tokens"], 1.0)
        return {"layer_mean_square": mean, **self.distillation.means(sums)}

    def _output(
        self, owner: str, outputs: LayerOutputs, stack: str, layer: int
    ) -> Float[Array, "b l e"]:
        count = len(outputs[stack]) if stack in outputs else 0
        if layer > count:
            raise UserError(
                f"{field_name(self, 'layers')} must be layers of the {owner}, whose {stack} has "
                f"{count}, got {layer}"
            )
        return outputs[stack][layer - 1]


def _is_pair(triple: Any) -> bool:
    if not isinstance(triple, list | tuple) or len(triple) != 3:
        return False
    stack, *layers = triple
    return stack in ("encoder", "decoder") and all(type(n) is int and n > 0 for n in layers)


class _RecordingTeacher:
    """A teacher that keeps the outputs of its layers."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher
        self.outputs: LayerOutputs = {}

    def hidden(self, batch: Batch) -> tuple[Float[Array, "b l e"], Bool[Array, "b l"]]:
        x, known, self.outputs = self._teacher.recorded(batch)
        return x, known

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        logits: Float[Array, "b l v"] = self._teacher.logits(x)
        return logits


class _Recording:
    """An apply function that keeps the outputs of the layers, which are computed only once."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self.teacher = _RecordingTeacher(apply.frozen["teacher"])
        self.frozen = {**apply.frozen, "teacher": self.teacher}
        self.outputs: LayerOutputs = {}
        self.has_maps = False

    def __call__(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> Float[Array, "b l v"]:
        return self.logits(params, self.hidden(params, batch, key)[0])

    def hidden(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b l e"], LayerStatistics]:
        assert isinstance(self._apply, RecordingApply), self._apply
        x, statistics, self.outputs = self._apply.recorded(params, batch, key)
        self.has_maps = "teacher_maps" in params
        return x, statistics

    def logits(self, params: Any, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        return self._apply.logits(params, x)

    def embedded(self, params: Any, batch: Batch) -> dict[str, Float[Array, "b l e"]]:
        return self._apply.embedded(params, batch)

    def head(self, params: Any, name: str, *arguments: Any) -> Any:
        return self._apply.head(params, name, *arguments)

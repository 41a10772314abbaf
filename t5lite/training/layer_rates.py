"""Learning rates that differ by layer, and layers that train only from some step on."""

import re
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.fields import check_fields, field_name
from t5lite.core.numbers import Number, numeric
from t5lite.optimizers.schedules import StepNumber

# The axis along which the layers of a stack are stored.
LAYERS = "layers"
# Parameters before the first layer: embeddings of tokens, positions and types with their norm, and
# the biases that all layers share.
_BEFORE_LAYERS = re.compile(r"(?:.*/)?(?:\w*embedder|embedding_norm|\w*relpos_bias)/.*")


@numeric
class LayerRates:
    """Factors of the learning rate by layer, and which layers train at a step.

    Layers are counted from the top of their own stack, encoder and decoder each: the last layer is
    0, like all that comes after it (final norms, output layers, classifiers), and the embeddings
    and shared position biases come after the first layer. The factor multiplies the whole update of
    an optimizer, its weight decay included. Layers that do not train keep their values to the bit;
    their gradients are computed and count in norms and in the optimizer's state.

    Args:
        decay: the factor of each layer over that of the layer above it, in [0, 1].
        top_layers: number of layers, from the top of each stack, that train at first; None for all,
            embeddings included.
        unfreeze_every_steps: steps after which the next layer below trains too, and after all
            layers the embeddings; None for never.

    Raises:
        UserError: if a number is out of range, or layers are unfrozen of which none is frozen.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification",
    sections 3.2 (discriminative fine-tuning) and 3.3 (gradual unfreezing).
    """

    decay: Number = 1.0
    top_layers: Number | None = None
    unfreeze_every_steps: Number | None = None

    def __post_init__(self) -> None:
        check_fields(self, ("decay",), "in [0, 1]", lambda x: 0 <= x <= 1)
        rule = "a whole number from 1"
        names = ("top_layers", "unfreeze_every_steps")
        check_fields(self, names, rule, lambda n: n >= 1 and n % 1 == 0)
        if self.unfreeze_every_steps is not None and self.top_layers is None:
            raise UserError(
                f"{field_name(self, 'unfreeze_every_steps')} needs "
                f"{field_name(self, 'top_layers')}, the number of layers that train at first"
            )

    def check(self, axes: Any) -> None:
        """Checks that a model has stacked layers, so that there is something to tell apart.

        Args:
            axes: the names of the axes of the parameters that train.

        Raises:
            UserError: if it has none.
        """
        if not any(LAYERS in names for names in flax.traverse_util.flatten_dict(axes).values()):
            raise UserError(
                "train.layer_rates needs layers among the parameters that train, got none; bind "
                "train.trainable to include some"
            )

    def scaled(self, step: StepNumber, updates: Any, axes: Any) -> Any:
        """Returns updates times the factors of their layers, 0 for those that do not train.

        Args:
            axes: the names of the axes of each parameter.

        >>> rates = LayerRates(decay=0.5, top_layers=1, unfreeze_every_steps=10)
        >>> updates = {"encoder": {"layers": {"scale": jnp.ones((3, 1))}}}
        >>> axes = {"encoder": {"layers": {"scale": ("layers", "embed")}}}
        >>> [rates.scaled(s, updates, axes)["encoder"]["layers"]["scale"][:, 0].tolist()
        ...  for s in (0, 10, 20)]
        [[0.0, 0.0, 1.0], [0.0, 0.5, 1.0], [0.25, 0.5, 1.0]]
        """

        def scale(depth: Any, update: Any) -> Any:
            factor = jnp.asarray(self.decay, jnp.float32) ** depth
            return update * jnp.where(self._trains(step, depth), factor, 0.0)

        return _by_depth(scale, axes, updates)

    def kept(self, step: StepNumber, new: Any, old: Any, axes: Any) -> Any:
        """Returns the parameters `new` of layers that train at a step, and `old` of the others."""
        if self.top_layers is None:
            return new

        def choose(depth: Any, new: Any, old: Any) -> Any:
            return jnp.where(self._trains(step, depth), new, old)

        return _by_depth(choose, axes, new, old)

    def _trains(self, step: StepNumber, depth: Any) -> Any:
        if self.top_layers is None:
            return True
        layers = jnp.asarray(self.top_layers, jnp.float32)
        if self.unfreeze_every_steps is not None:
            layers = layers + jnp.floor(jnp.asarray(step, jnp.float32) / self.unfreeze_every_steps)
        return depth < layers


def _by_depth(function: Callable[..., Any], axes: Any, *trees: Any) -> Any:
    """Returns the tree of what `function` returns for the depth of each parameter and its leaves.

    A depth is the number of layers above, as an array that broadcasts along the stacked layers.
    """
    axes_of = flax.traverse_util.flatten_dict(axes, sep="/")
    flat = [flax.traverse_util.flatten_dict(tree, sep="/") for tree in trees]
    counts: dict[str, int] = {}
    for name, names in axes_of.items():
        if LAYERS in names:
            rows = flat[0][name].shape[names.index(LAYERS)]
            stack = name.partition("/")[0]
            counts[stack] = max(counts.get(stack, 0), rows)

    def depth_of(name: str) -> Any:
        names = axes_of[name]
        if LAYERS in names:
            # A parameter that the first layers do not have belongs to the last ones.
            axis = names.index(LAYERS)
            rows = flat[0][name].shape[axis]
            shape = [rows if each == axis else 1 for each in range(len(names))]
            return np.arange(rows - 1, -1, -1, dtype=np.float32).reshape(shape)
        stack = name.partition("/")[0]
        if _BEFORE_LAYERS.fullmatch(name):
            return np.float32(counts.get(stack, max(counts.values(), default=0)))
        return np.float32(0.0)

    made = {name: function(depth_of(name), *(tree[name] for tree in flat)) for name in flat[0]}
    return flax.traverse_util.unflatten_dict(made, sep="/")

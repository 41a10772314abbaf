"""A model as functions of its parameters, the form in which losses call it."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from t5lite.core.batches import Batch
from t5lite.core.lazy import by_name
from t5lite.core.numbers import Number
from t5lite.models.experts import COLLECTION
from t5lite.models.model import Model


@dataclasses.dataclass(frozen=True)
class ModelApply:
    """The apply function of a model; see `losses.loss.Apply`.

    Args:
        dropout_rate: applied in calls that have a key; None compiles no dropout.
    """

    model: Model
    dropout_rate: Number | None = None

    def __call__(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> Float[Array, "b l v"]:
        """Returns the logits of the whole batch."""
        return self.logits(params, self.hidden(params, batch, key)[0])

    def hidden(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b l e"], dict[str, Float[Array, "layers b"]]]:
        """Returns the input of `logits`, and the statistics of experts of each layer and row."""
        has_experts = self.model.config.num_experts is not None
        result: Any = self.model.apply(
            {"params": params},
            batch,
            dropout_rate=None if key is None else self.dropout_rate,
            rngs=None if key is None else {"dropout": key},
            method="hidden",
            mutable=[COLLECTION] if has_experts else False,
        )
        if not has_experts:
            return result, {}
        hidden, collections = result
        return hidden, _by_statistic(collections[COLLECTION])

    def logits(self, params: Any, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns the logits of a part of what `hidden` returned."""
        logits: Any = self.model.apply({"params": params}, x, method="logits")
        return logits


def _by_statistic(tree: Any) -> dict[str, Float[Array, "layers b"]]:
    """Returns what all stacks of layers sowed, by the name of the statistic."""
    found: dict[str, list[Any]] = {}
    for path, leaf in by_name(tree).items():
        # Flax keeps what a module sows in a tuple: .../mlp/load_balance/0.
        found.setdefault(path.split("/")[-2], []).append(leaf)
    return {name: jnp.concatenate(leaves) for name, leaves in found.items()}

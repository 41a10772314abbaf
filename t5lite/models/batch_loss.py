"""From a model and a batch to the sums that training and evaluation report, logits in passing."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from t5lite.core.lazy import by_name
from t5lite.core.numbers import Number
from t5lite.core.parts import sum_over_parts
from t5lite.models.architectures import Batch, Model, targets_of
from t5lite.models.experts import COLLECTION
from t5lite.models.losses import CrossEntropy

Sums = dict[str, Float[Array, "..."]]


def batch_loss(
    model: Model,
    params: Any,
    batch: Batch,
    loss: CrossEntropy,
    *,
    dropout_rate: Number | None = None,
    key: Key[Array, ""] | None = None,
    by_row: bool = False,
) -> Sums:
    """Returns `CrossEntropy.sums` of the batch; with experts also what `route` tells of each row.

    The latter are sums over rows, each times its target tokens, and over layers (of `dropped` the
    mean over layers). Like all other sums they are divided by the tokens of the batch where they
    are reported, and `loss` has them with the coefficients that the loss gives them.

    Args:
        key: of dropout; needed where there is a rate.
        by_row: whether the sums are those of each row.
    """
    variables, rngs = {"params": params}, None if key is None else {"dropout": key}
    has_experts = model.config.num_experts is not None
    hidden: Any = model.apply(
        variables,
        batch,
        dropout_rate=dropout_rate,
        rngs=rngs,
        method="hidden",
        mutable=[COLLECTION] if has_experts else False,
    )
    hidden, told = hidden if has_experts else (hidden, {})
    targets, weights = targets_of(batch)

    def sums_of(x: Float[Array, "b l e"], targets: Int[Array, "b l"], weights: Any) -> Sums:
        logits: Any = model.apply(variables, x, method="logits")
        return loss.sums(logits, targets, weights, by_row=by_row)

    sums = _by_chunks(sums_of, loss.chunks, hidden, targets, weights)
    if has_experts:
        of_row = jnp.sum(weights, axis=1, dtype=jnp.float32)
        experts = {
            name: jnp.sum(jnp.concatenate(leaves) * of_row[None], 0 if by_row else None)
            for name, leaves in _gathered(told[COLLECTION]).items()
        }
        layers = model.config.num_encoder_layers + model.config.num_decoder_layers
        experts["dropped"] = experts["dropped"] / layers
        added = loss.load_balance * experts["load_balance"] + loss.router_z * experts["router_z"]
        sums = {**sums, **experts, "loss": sums["loss"] + added}
    return sums


def _gathered(tree: Any) -> dict[str, list[Float[Array, "layers b"]]]:
    """What all stacks of layers have told, by its name."""
    found: dict[str, list[Any]] = {}
    for path, leaf in by_name(tree).items():
        # Flax puts what a module tells into a tuple: .../mlp/load_balance/0.
        found.setdefault(path.split("/")[-2], []).append(leaf)
    return found


def _by_chunks(sums_of: Any, chunks: int, *arrays: Array) -> Sums:
    """Adds up `sums_of` over parts of the rows, of which only one at a time has its logits.

    A part has places from all over the row, so from all devices among which rows are split. The
    backward pass makes its logits again.
    """
    if chunks == 1:
        made: Sums = sums_of(*arrays)
        return made

    def split(x: Array) -> Array:
        short = -x.shape[1] % chunks
        padded = jnp.pad(x, ((0, 0), (0, short), *((0, 0),) * (x.ndim - 2)))
        parts = padded.reshape(x.shape[0], -1, chunks, *x.shape[2:])
        return jnp.moveaxis(parts, 2, 0)

    summed: Sums = sum_over_parts(jax.checkpoint(sums_of), tuple(map(split, arrays)))
    return summed

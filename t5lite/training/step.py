"""One step of training, a pure function of (hyperparameters, state, batch)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from t5lite.core.parts import sum_over_parts
from t5lite.core.streams import stream
from t5lite.models.architectures import Batch, Model
from t5lite.models.batch_loss import batch_loss
from t5lite.optimizers.rounding import apply_updates
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.state import TrainState, in_memory

Sums = dict[str, Float[Array, ""]]
Step = Callable[[Hyperparameters, TrainState, Batch], tuple[TrainState, Sums]]


def make_train_step(
    model: Model, param_axes: Any, *, microbatches: int = 1, offloaded: Any = None
) -> Step:
    """Returns the step: gradient of the mean loss of the global batch, clipped, and an update.

    The loss is a sum over tokens divided by the number of target tokens in the whole batch, also
    where gradients are accumulated over microbatches.

    Args:
        param_axes: names of the axes of each parameter.
        microbatches: parts of the batch that are worked on one after another.
        offloaded: where the optimizer's state is in host memory, its shardings there; it is on the
            devices only while the parameters are updated.

    Returns:
        A function to the new state and, for the batch, the sums of `batch_loss`,
        `input_tokens`, and the step's `learning_rate` and `gradient_norm` before clipping.
    """

    def loss_sum(
        params: Any, batch: Batch, hyper: Hyperparameters, key: Array
    ) -> tuple[Float[Array, ""], Sums]:
        sums = batch_loss(
            model, params, batch, hyper.loss, dropout_rate=hyper.dropout_rate, key=key
        )
        return sums["loss"], sums

    gradient = jax.grad(loss_sum, has_aux=True)

    def gradient_of_batch(
        params: Any, batch: Batch, hyper: Hyperparameters, key: Array
    ) -> tuple[Any, Sums]:
        if microbatches == 1:
            return gradient(params, batch, hyper, key)

        def of_part(index: Array, rows: Batch) -> tuple[Any, Sums]:
            return gradient(params, rows, hyper, stream(key, "microbatch", index))

        parts = (jnp.arange(microbatches), jax.tree.map(_split_rows, batch))
        total: tuple[Any, Sums] = sum_over_parts(of_part, parts)
        return total

    def _split_rows(x: Array) -> Array:
        # Every microbatch takes rows from all over the batch, so from all devices alike.
        parts = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return nn.with_logical_constraint(parts, (None, "batch", *(None,) * (x.ndim - 1)))

    def train_step(
        hyper: Hyperparameters, state: TrainState, batch: Batch
    ) -> tuple[TrainState, Sums]:
        root = jax.random.key(hyper.seed)
        # Gradients and updates are float32 whatever the parameters are kept in.
        params = jax.tree.map(lambda p: p.astype(jnp.float32), state.params)
        key = stream(root, "dropout", state.step)
        grads, sums = gradient_of_batch(params, batch, hyper, key)
        tokens = jnp.maximum(sums["tokens"], 1.0)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        norm = optax.tree.norm(grads)
        if hyper.max_gradient_norm is not None:
            scale = jnp.minimum(1.0, hyper.max_gradient_norm / jnp.maximum(norm, 1e-30))
            grads = jax.tree.map(lambda g: g * scale, grads)

        learning_rate = hyper.optimizer.learning_rate(state.step)
        transformation = hyper.optimizer.transformation(learning_rate, param_axes)
        opt_state = state.opt_state
        if offloaded is not None:
            opt_state = jax.device_put(opt_state, in_memory(offloaded, "device"))
        updates, opt_state = transformation.update(grads, opt_state, params)
        if offloaded is not None:
            opt_state = jax.device_put(opt_state, offloaded)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=apply_updates(state.params, updates, stream(root, "rounding", state.step)),
            opt_state=opt_state,
        )
        inputs = batch.get("encoder_segment_ids")
        input_tokens = jnp.zeros([]) if inputs is None else jnp.sum(inputs > 0, dtype=jnp.float32)
        scalars = {"learning_rate": learning_rate, "gradient_norm": norm}
        return new_state, {**sums, "input_tokens": input_tokens, **scalars}

    return train_step

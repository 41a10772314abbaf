"""One step of training, a pure function of (hyperparameters, state, batch)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from t5lite.core.batches import Batch
from t5lite.core.parts import sum_over_parts
from t5lite.core.streams import stream
from t5lite.losses.loss import LossSums, check_sums
from t5lite.models.architectures import ModelApply
from t5lite.models.model import Model
from t5lite.optimizers.rounding import apply_updates
from t5lite.parallel.mesh import POPULATION
from t5lite.parallel.sharding import on_mesh
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.program import TrainProgram
from t5lite.training.state import TrainState, in_memory
from t5lite.training.trainable import EVERYTHING, join_params, split_params

TrainStep = Callable[[Hyperparameters, TrainState, Batch], tuple[TrainState, LossSums]]


def lower_train_step(program: TrainProgram, *, stacked: bool = False) -> jax.stages.Lowered:
    """Returns the traced step of a program. Compiled, it takes (hyper, state, batch).

    The state is donated, and the new state has the same shardings.

    Args:
        stacked: whether all inputs have a first dimension for several trials, which the mesh axis
            `population` splits if there is one.
    """
    run = program.run
    shardings = jax.tree.map(lambda x: x.sharding, program.state)
    step: Any = make_train_step(
        run.model,
        program.param_axes,
        microbatches=run.microbatches,
        trainable=run.trainable,
        offloaded=shardings.opt_state if run.offload_optimizer else None,
    )
    if stacked:
        axis = POPULATION if POPULATION in program.mesh.shape else None
        step = jax.vmap(step, spmd_axis_name=axis)
    jitted = jax.jit(step, donate_argnums=1, out_shardings=(shardings, None))
    with on_mesh(program.mesh):
        return jitted.lower(program.hyper, program.state, program.batch)


def make_train_step(
    model: Model,
    param_axes: Any,
    *,
    microbatches: int = 1,
    trainable: Sequence[str] = EVERYTHING,
    offloaded: Any = None,
) -> TrainStep:
    """Returns the step: gradient of the mean loss of the global batch, clipped, and an update.

    The loss is a sum over tokens divided by the number of target tokens in the whole batch, also
    if gradients are accumulated over microbatches.

    Args:
        param_axes: names of the axes of each parameter.
        microbatches: parts of the batch that are processed in turn.
        trainable: patterns of the parameters that train; the others are constants.
        offloaded: shardings of the optimizer state in host memory, if it is kept there; it is on
            the devices only while the parameters are updated.

    Returns:
        A function to the new state and, for the batch, the sums of the loss, `input_tokens`, and
        the step's `learning_rate` and `gradient_norm` before clipping.
    """
    trained_axes, _ = split_params(param_axes, trainable)

    def loss_of(
        trained: Any, constant: Any, batch: Batch, hyper: Hyperparameters, key: Array
    ) -> tuple[Float[Array, ""], LossSums]:
        apply = ModelApply(model, hyper.dropout_rate)
        params = join_params(trained, constant)
        sums = hyper.loss(apply, params, batch, key)
        check_sums(hyper.loss, sums, batch)
        return sums["loss"], sums

    gradient = jax.grad(loss_of, has_aux=True)

    def gradient_of_batch(
        trained: Any, constant: Any, batch: Batch, hyper: Hyperparameters, key: Array
    ) -> tuple[Any, LossSums]:
        if microbatches == 1:
            return gradient(trained, constant, batch, hyper, key)

        def of_part(index: Array, rows: Batch) -> tuple[Any, LossSums]:
            return gradient(trained, constant, rows, hyper, stream(key, "microbatch", index))

        parts = (jnp.arange(microbatches), jax.tree.map(_split_rows, batch))
        total: tuple[Any, LossSums] = sum_over_parts(of_part, parts)
        return total

    def _split_rows(x: Array) -> Array:
        # Every microbatch takes rows from all over the batch, so equally from all devices.
        parts = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return nn.with_logical_constraint(parts, (None, "batch", *(None,) * (x.ndim - 1)))

    def train_step(
        hyper: Hyperparameters, state: TrainState, batch: Batch
    ) -> tuple[TrainState, LossSums]:
        root = jax.random.key(hyper.seed)
        # Gradients and updates are float32 whatever dtype the parameters have.
        params = jax.tree.map(lambda p: p.astype(jnp.float32), state.params)
        trained, constant = split_params(params, trainable)
        key = stream(root, "dropout", state.step)
        grads, sums = gradient_of_batch(trained, constant, batch, hyper, key)
        tokens = jnp.maximum(sums["tokens"], 1.0)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        norm = optax.tree.norm(grads)
        if hyper.max_gradient_norm is not None:
            scale = jnp.minimum(1.0, hyper.max_gradient_norm / jnp.maximum(norm, 1e-30))
            grads = jax.tree.map(lambda g: g * scale, grads)

        learning_rate = hyper.optimizer.learning_rate(state.step)
        transformation = hyper.optimizer.transformation(learning_rate, trained_axes)
        opt_state = state.opt_state
        if offloaded is not None:
            opt_state = jax.device_put(opt_state, in_memory(offloaded, "device"))
        extra = hyper.optimizer.loss_argument(transformation, lambda: sums["loss"] / tokens)
        updates, opt_state = transformation.update(grads, opt_state, trained, **extra)
        if offloaded is not None:
            opt_state = jax.device_put(opt_state, offloaded)
        old, unchanged = split_params(state.params, trainable)
        new = apply_updates(old, updates, stream(root, "rounding", state.step))
        new_state = dataclasses.replace(
            state, step=state.step + 1, params=join_params(new, unchanged), opt_state=opt_state
        )
        inputs = batch.get("encoder_segment_ids")
        input_tokens = jnp.zeros([]) if inputs is None else jnp.sum(inputs > 0, dtype=jnp.float32)
        scalars = {"learning_rate": learning_rate, "gradient_norm": norm}
        return new_state, {**sums, "input_tokens": input_tokens, **scalars}

    return train_step

"""One step of training, a pure function of (hyperparameters, state, batch, frozen models)."""

import functools
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
from t5lite.models.frozen import FrozenModel
from t5lite.models.model import Model
from t5lite.optimizers.rounding import apply_updates
from t5lite.parallel.mesh import POPULATION
from t5lite.parallel.sharding import on_mesh
from t5lite.training.bad_steps import judge, where_good
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.program import TrainProgram
from t5lite.training.rank_budget import mean_rank
from t5lite.training.state import TrainState, in_memory
from t5lite.training.trainable import EVERYTHING, join_params, split_params

# By name, the parameters of models that do not train.
FrozenParams = Mapping[str, Any]
TrainStep = Callable[
    [Hyperparameters, TrainState, Batch, FrozenParams], tuple[TrainState, LossSums]
]


def lower_train_step(program: TrainProgram, *, stacked: bool = False) -> jax.stages.Lowered:
    """Returns the traced step of a program. Compiled, it takes (hyper, state, batch, frozen).

    The state is donated, and the new state has the same shardings.

    Args:
        stacked: whether all inputs but `frozen`, which trials share, have a first dimension for
            several trials, which the mesh axis `population` splits if there is one.
    """
    run = program.run
    shardings = jax.tree.map(lambda x: x.sharding, program.state)
    step: Any = make_train_step(
        run.model,
        program.param_axes,
        microbatches=run.microbatches,
        trainable=run.trainable,
        offloaded=shardings.opt_state if run.offload_optimizer else None,
        frozen={name: part.with_params for name, part in program.frozen.items()},
    )
    if stacked:
        axis = POPULATION if POPULATION in program.mesh.shape else None
        step = jax.vmap(step, in_axes=(0, 0, 0, None), spmd_axis_name=axis)
    jitted = jax.jit(step, donate_argnums=1, out_shardings=(shardings, None))
    with on_mesh(program.mesh):
        frozen = {name: part.params for name, part in program.frozen.items()}
        return jitted.lower(program.hyper, program.state, program.batch, frozen)


class CompiledStep(NamedTuple):
    """A compiled step, and the seconds that compiling it took."""

    step: TrainStep
    seconds: float


def compile_once(program: TrainProgram, log: Callable[[str], None]) -> Callable[[], CompiledStep]:
    """Returns a function that compiles the step of a program when it is first called."""

    @functools.cache
    def compiled() -> CompiledStep:
        log("compiling the train step")
        started = time.perf_counter()
        step: Any = lower_train_step(program).compile()
        return CompiledStep(step, time.perf_counter() - started)

    return compiled


def make_train_step(
    model: Model,
    param_axes: Any,
    *,
    microbatches: int = 1,
    trainable: Sequence[str] = EVERYTHING,
    offloaded: Any = None,
    frozen: Mapping[str, Callable[[Any], FrozenModel]] = types.MappingProxyType({}),
) -> TrainStep:
    """Returns the step: gradient of the mean loss of the global batch, clipped, and an update.

    The loss is a sum over tokens divided by the number of target tokens in the whole batch, also
    if gradients are accumulated over microbatches. A bad step changes only the number of steps.

    Args:
        param_axes: names of the axes of each parameter.
        microbatches: parts of the batch that are processed in turn.
        trainable: patterns of the parameters that train; the others are constants.
        offloaded: shardings of the optimizer state in host memory, if it is kept there; it is on
            the devices only while the parameters are updated.
        frozen: from the parameters of each model that does not train to the model, by name.

    Returns:
        A function to the new state and, for the batch, the sums of the loss, `input_tokens`, and
        the step's `learning_rate` and `gradient_norm` before clipping, with AdaLoRA `mean_rank`.
        If steps may be bad, also `bad_steps`, which is 1 if this one is and its sums therefore 0,
        and what decided it.
    """
    trained_axes, _ = split_params(param_axes, trainable)
    gradient_of_batch = _make_gradient(model, frozen, microbatches=microbatches)

    def train_step(
        hyper: Hyperparameters,
        state: TrainState,
        batch: Batch,
        frozen_params: FrozenParams = types.MappingProxyType({}),
    ) -> tuple[TrainState, LossSums]:
        root = jax.random.key(hyper.seed)
        old, unchanged = split_params(state.params, trainable)
        # Gradients and updates are float32 whatever dtype the parameters have.
        trained = jax.tree.map(lambda p: p.astype(jnp.float32), old)
        key = stream(root, "dropout", state.step)
        constants = _Constants(unchanged, frozen_params, hyper)
        grads, sums = gradient_of_batch(trained, constants, batch, key)
        tokens = jnp.maximum(sums["tokens"], 1.0)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        norm = optax.tree.norm(grads)
        if hyper.max_gradient_norm is not None:
            scale = jnp.minimum(1.0, hyper.max_gradient_norm / jnp.maximum(norm, 1e-30))
            grads = jax.tree.map(lambda g: g * scale, grads)

        learning_rate, transformation = hyper.optimizer.at(state.step, trained_axes)
        old_opt_state = state.opt_state
        if offloaded is not None:
            old_opt_state = jax.device_put(old_opt_state, in_memory(offloaded, "device"))
        extra = hyper.optimizer.loss_argument(transformation, lambda: sums["loss"] / tokens)
        updates, opt_state = transformation.update(grads, old_opt_state, trained, **extra)
        key = stream(root, "rounding", state.step)
        updates, new = _updated(hyper, state.step, old, updates, trained_axes, key)

        inputs = batch.get("encoder_segment_ids")
        input_tokens = jnp.zeros([]) if inputs is None else jnp.sum(inputs > 0, dtype=jnp.float32)
        sums = {**sums, "input_tokens": input_tokens}
        scalars = {"learning_rate": learning_rate, "gradient_norm": norm}
        ranks = None
        if hyper.rank_budget is not None:
            done = state.step + 1
            ranks, new = hyper.rank_budget.allocated(state.ranks, new, grads, done)
        average = None
        if hyper.moving_average is not None:
            average = hyper.moving_average.updated(state.average, new, state.step)
        recent = None
        if hyper.bad_steps is not None:
            loss = sums["loss"] / tokens
            is_good, recent, verdict = judge(
                hyper.bad_steps, state.recent, loss=loss, norm=norm, updates=updates
            )
            scalars |= verdict
            new = where_good(is_good, new, old)
            opt_state = where_good(is_good, opt_state, old_opt_state)
            average = where_good(is_good, average, state.average)
            ranks = where_good(is_good, ranks, state.ranks)
            sums = where_good(is_good, sums, jax.tree.map(jnp.zeros_like, sums))
        if hyper.rank_budget is not None:
            scalars["mean_rank"] = mean_rank(new)
        if offloaded is not None:
            opt_state = jax.device_put(opt_state, offloaded)
        new_state = TrainState(
            step=state.step + 1,
            params=join_params(new, unchanged),
            opt_state=opt_state,
            recent=recent,
            average=average,
            ranks=ranks,
        )
        return new_state, {**sums, **scalars}

    return train_step


def _updated(
    hyper: Hyperparameters, step: Array, old: Any, updates: Any, axes: Any, key: Array
) -> tuple[Any, Any]:
    """Returns the updates of what trains at a step, and the parameters after them.

    Args:
        old, updates, axes: of the parameters that train at some step.
        key: of rounding.
    """
    if hyper.layer_rates is not None:
        updates = hyper.layer_rates.scaled(step, updates, axes)
    new = apply_updates(old, updates, key)
    # The parameters are chosen too: adding 0 would change the sign of -0.0.
    if hyper.train_first is not None:
        none = jax.tree.map(jnp.zeros_like, updates)
        updates = hyper.train_first.chosen(step, updates, none)
        new = hyper.train_first.chosen(step, new, old)
    if hyper.layer_rates is not None:
        new = hyper.layer_rates.kept(step, new, old, axes)
    return updates, new


class _Constants(NamedTuple):
    """What the loss depends on besides what trains, the batch and the key.

    Args:
        params: of the model, those that do not train.
        frozen: of other models, by name.
    """

    params: Any
    frozen: FrozenParams
    hyper: Hyperparameters


def _make_gradient(
    model: Model, frozen: Mapping[str, Callable[[Any], FrozenModel]], *, microbatches: int
) -> Callable[..., tuple[Any, LossSums]]:
    """Returns the function to the gradient of the summed loss of a batch, and its sums."""

    def loss_of(
        trained: Any, constants: _Constants, batch: Batch, key: Array
    ) -> tuple[Float[Array, ""], LossSums]:
        hyper = constants.hyper
        others = {name: bind(constants.frozen[name]) for name, bind in frozen.items()}
        apply = ModelApply(model, hyper.dropout_rate, others)
        params = join_params(trained, constants.params)
        sums = hyper.loss(apply, params, batch, key)
        check_sums(hyper.loss, sums, batch)
        if hyper.rank_budget is not None:
            penalty = sums["tokens"] * hyper.rank_budget.penalty(trained)
            sums = {**sums, "loss": sums["loss"] + penalty}
        return sums["loss"], sums

    gradient = jax.grad(loss_of, has_aux=True)

    def gradient_of_batch(
        trained: Any, constants: _Constants, batch: Batch, key: Array
    ) -> tuple[Any, LossSums]:
        if microbatches == 1:
            return gradient(trained, constants, batch, key)

        def of_part(index: Array, rows: Batch) -> tuple[Any, LossSums]:
            return gradient(trained, constants, rows, stream(key, "microbatch", index))

        parts = (jnp.arange(microbatches), jax.tree.map(_split_rows, batch))
        total: tuple[Any, LossSums] = sum_over_parts(of_part, parts)
        return total

    def _split_rows(x: Array) -> Array:
        # Every microbatch takes rows from all over the batch, so equally from all devices.
        parts = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return nn.with_logical_constraint(parts, (None, "batch", *(None,) * (x.ndim - 1)))

    return gradient_of_batch

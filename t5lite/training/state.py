"""The state that training carries from one step to the next, and its initial value."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5lite.core.lazy import by_name
from t5lite.core.numbers import as_inputs
from t5lite.core.streams import stream
from t5lite.models.initializers import Parameter
from t5lite.models.model import Model, init, parameter_tree
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import logical_axes, state_axes, tree_shardings
from t5lite.training.bad_steps import no_recent_steps
from t5lite.training.base_dtype import stored_axes, stored_base
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.rank_budget import RankScores, check_budget, no_scores
from t5lite.training.trainable import (
    EVERYTHING,
    join_params,
    split_by_name,
    split_params,
    trainable_names,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All state of a run: saved with every checkpoint, donated to every step.

    The same tree may hold shapes, axes or shardings instead of arrays, so no field has a type.

    Args:
        step: number of completed steps, int32 [].
        params: all parameters, float32 or bfloat16, and with `train.base_dtype` int8 kernels.
        opt_state: state of the optax transformation, for the parameters that train.
        recent: a `RecentSteps`; None if no step counts as bad.
        average: moving average of the parameters that train, float32; None if there is none.
        ranks: a `RankScores`; None without AdaLoRA.
    """

    step: Any
    params: Any
    opt_state: Any
    recent: Any = None
    average: Any = None
    ranks: Any = None

    @property
    def evaluated_params(self) -> Any:
        """The parameters that a run evaluates: with their moving average, if there is one."""
        return self.params if self.average is None else join_params(self.params, self.average)


def params_and_axes(model: Model) -> tuple[Any, Any]:
    """Returns the shapes of the parameters, and the names of their axes, as two trees."""

    boxed = parameter_tree(model)
    shapes = jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda x: isinstance(x, Parameter))
    return shapes, logical_axes(boxed)


def abstract_params(model: Model, mesh: DeviceMesh) -> Any:
    """Returns shapes, dtypes and shardings of the parameters.

    Raises:
        UserError: if the mesh does not divide an axis that it splits.
    """
    shapes, axes = params_and_axes(model)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, axes, mesh),
    )


def initial_state(
    model: Model,
    hyper: Hyperparameters,
    axes: Any,
    param_dtype: str = "float32",
    trainable: Sequence[str] = EVERYTHING,
    base_dtype: str | None = None,
    *,
    params: Any = None,
) -> TrainState:
    """Returns the state before the first step, a function of the seed; meant to be compiled.

    Args:
        axes: from `params_and_axes`.
        param_dtype: "float32" or "bfloat16"; the optimizer's state is float32 with both.
        trainable: patterns of the parameters that train.
        base_dtype: of what neither trains nor belongs to an adapter; None for `param_dtype`.
        params: float32 parameters instead of those of the seed.
    """
    if params is None:
        params = nn.unbox(init(model, stream(jax.random.key(hyper.seed), "init")))
    state = _state_of(params, hyper, axes, param_dtype, trainable)
    stored, _ = stored_base(model, state.params, trainable, base_dtype)
    return dataclasses.replace(state, params=stored)


def _state_of(
    params: Any, hyper: Hyperparameters, axes: Any, param_dtype: str, trainable: Sequence[str]
) -> TrainState:
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        params=jax.tree.map(lambda p: p.astype(param_dtype), params),
        opt_state=initial_opt_state(hyper, params, axes, trainable),
        recent=None if hyper.bad_steps is None else no_recent_steps(),
        average=initial_average(hyper, params, trainable),
        ranks=None if hyper.rank_budget is None else no_scores(split_params(params, trainable)[0]),
    )


def initial_opt_state(
    hyper: Hyperparameters, params: Any, axes: Any, trainable: Sequence[str] = EVERYTHING
) -> Any:
    """Returns the optimizer's state before the first step from `params`, for those that train."""
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    trained, _ = split_params(params, trainable)
    trained_axes, _ = split_params(axes, trainable)
    _, transformation = hyper.optimizer.at(0, trained_axes)
    return transformation.init(trained)


def initial_average(
    hyper: Hyperparameters, params: Any, trainable: Sequence[str] = EVERYTHING
) -> Any:
    """Returns the moving average before the first step from `params`; None if there is none."""
    if hyper.moving_average is None:
        return None
    trained, _ = split_params(params, trainable)
    # Copies: the parameters and their average are donated to the step together.
    return jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), trained)


def state_shardings(state: TrainState, axes: Any, mesh: DeviceMesh) -> TrainState:
    """Returns the sharding of each array of an abstract state; optimizer state follows parameters.

    Raises:
        UserError: if the mesh does not divide an axis that it splits.
    """
    average = None
    if state.average is not None:
        average, _ = split_by_name(axes, by_name(state.average))
    ranks = None
    if state.ranks is not None:
        scored, _ = split_by_name(axes, by_name(state.ranks.sensitivity))
        ranks = RankScores(sensitivity=scored, uncertainty=scored)
    names = TrainState(
        step=(),
        params=axes,
        opt_state=state_axes(state.opt_state, state.params, axes),
        recent=jax.tree.map(lambda _: (), state.recent),
        average=average,
        ranks=ranks,
    )
    return tree_shardings(state, names, mesh)


def state_shapes(
    model: Model,
    hyper: Hyperparameters,
    param_dtype: str = "float32",
    trainable: Sequence[str] = EVERYTHING,
    base_dtype: str | None = None,
) -> tuple[TrainState, Any]:
    """Returns shapes and dtypes of the state, and the parameters' axes.

    Raises:
        UserError: if a pattern of `trainable` matches no parameter.
    """
    # Not from `initial_state`: tracing the model again would take longer than all the rest.
    params, axes = params_and_axes(model)
    trained = trainable_names("train.trainable", trainable, by_name(params))
    hyper.optimizer.check(trained)
    check_budget(hyper.rank_budget, trained)
    if hyper.train_first is not None:
        hyper.train_first.check(trained)
    if hyper.layer_rates is not None:
        hyper.layer_rates.check(split_params(axes, trainable)[0])
    inputs = as_inputs(hyper)
    shapes = jax.eval_shape(
        lambda p, h: _state_of(p, h, axes, param_dtype, trainable), params, inputs
    )
    if base_dtype is None:
        return shapes, axes
    kernels: list[str] = []

    def stored(params: Any) -> Any:
        changed, names = stored_base(model, params, trainable, base_dtype)
        kernels.extend(names)
        return changed

    shapes = dataclasses.replace(shapes, params=jax.eval_shape(stored, shapes.params))
    return shapes, stored_axes(model, axes, kernels)


def abstract_state(
    model: Model,
    hyper: Hyperparameters,
    mesh: DeviceMesh,
    *,
    param_dtype: str = "float32",
    offload_optimizer: bool = False,
    trainable: Sequence[str] = EVERYTHING,
    base_dtype: str | None = None,
) -> tuple[TrainState, Any]:
    """Returns shapes, dtypes and shardings of the state, and the parameters' axes.

    Args:
        offload_optimizer: whether the optimizer's state lives in the hosts' memory; its scalars
            stay on the devices.
        trainable: patterns of the parameters that train.
        base_dtype: see `initial_state`.

    Raises:
        UserError: if a pattern matches no parameter, nothing is left for `base_dtype`, or the mesh
            does not divide an axis.
    """
    state, axes = state_shapes(model, hyper, param_dtype, trainable, base_dtype)
    shardings = state_shardings(state, axes, mesh)
    if offload_optimizer:
        kept = jax.tree.map(
            lambda x, s: s if x.ndim == 0 else s.with_memory_kind("pinned_host"),
            state.opt_state,
            shardings.opt_state,
        )
        shardings = dataclasses.replace(shardings, opt_state=kept)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    ), axes


def in_memory(shardings: Any, kind: str) -> Any:
    """Returns the same shardings in another memory, "device" or "pinned_host"."""
    return jax.tree.map(lambda sharding: sharding.with_memory_kind(kind), shardings)

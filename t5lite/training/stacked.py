"""The states of several trials stacked in one set of arrays, and the program that steps them."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from t5lite.core.numbers import as_inputs
from t5lite.parallel.mesh import POPULATION
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.program import TrainProgram
from t5lite.training.state import TrainState
from t5lite.training.step import FrozenParams, lower_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackedProgram:
    """One program for several trials. Arrays have a first dimension with one entry per slot.

    Args:
        init: returns zeros for the states of all slots.
        step: from (hyperparameters, states, batches) of all slots, and the parameters of models
            that do not train, to the new states and sums.
        read: from the states and the index of a slot to the state of that slot.
        write: from the states, one state and the index of a slot to the states with it in place.
        batch_shardings: of each array of the stacked batch.
        compile_seconds: seconds that compiling took.
    """

    init: Callable[[], TrainState]
    step: Callable[[Hyperparameters, TrainState, Any, FrozenParams], tuple[TrainState, Any]]
    read: Callable[[TrainState, np.int32], TrainState]
    write: Callable[[TrainState, TrainState, np.int32], TrainState]
    batch_shardings: Mapping[str, NamedSharding]
    compile_seconds: float


def compile_stacked(program: TrainProgram, hyper: Hyperparameters, size: int) -> StackedProgram:
    """Compiles the step of `size` trials that differ in numbers only.

    Args:
        program: of one of them.
        hyper: its numbers, with every optional one that any of the trials has.
    """
    started = time.perf_counter()
    axis = POPULATION if POPULATION in program.mesh.shape else None
    state = _stacked_shapes(program.state, size, axis)
    batch = _stacked_shapes(program.batch, size, axis)
    hypers = stack_numbers([as_inputs(hyper)] * size)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = lower_train_step(
        dataclasses.replace(program, hyper=hypers, state=state, batch=batch), stacked=True
    )
    init = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state), out_shardings=shardings
    )
    write = jax.jit(
        lambda states, one, slot: jax.tree.map(lambda a, x: a.at[slot].set(x), states, one),
        donate_argnums=0,
        out_shardings=shardings,
    )
    read = jax.jit(
        lambda states, slot: jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, slot, keepdims=False), states
        ),
        out_shardings=jax.tree.map(lambda x: x.sharding, program.state),
    )
    return StackedProgram(
        init=init,
        step=step.compile(),
        read=read,
        write=write,
        batch_shardings={name: x.sharding for name, x in batch.items()},
        compile_seconds=time.perf_counter() - started,
    )


def stack_numbers(hypers: Sequence[Hyperparameters]) -> Hyperparameters:
    """Returns the numbers of several trials, each number as an array with one entry per slot."""
    stacked: Hyperparameters = jax.tree.map(lambda *numbers: np.stack(numbers), *hypers)
    return stacked


def stack_batches(
    batches: Sequence[Mapping[str, np.ndarray]], shardings: Mapping[str, NamedSharding]
) -> dict[str, jax.Array]:
    """Returns the batches of all slots as arrays on the devices."""
    return {
        name: jax.device_put(np.stack([batch[name] for batch in batches]), sharding)
        for name, sharding in shardings.items()
    }


def _stacked_shapes(tree: Any, size: int, axis: str | None) -> Any:
    """Adds a first dimension for the slots, split by a mesh axis or by none."""

    def stack(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        assert isinstance(x.sharding, NamedSharding)
        sharding = NamedSharding(x.sharding.mesh, PartitionSpec(axis, *x.sharding.spec))
        return jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=sharding)

    return jax.tree.map(stack, tree)

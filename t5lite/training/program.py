"""The program of a run: shapes, dtypes and shardings of its inputs, and its first state."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.core.lazy import by_name
from t5lite.core.numbers import as_inputs
from t5lite.losses.loss import check_tasks, check_teacher_maps
from t5lite.models.flops import train_flops
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import batch_sharding, check_lengths, on_mesh
from t5lite.training.frozen import FrozenPart, open_frozen
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.run import Run
from t5lite.training.state import TrainState, abstract_state, initial_state
from t5lite.training.trainable import trainable_names


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """All that the step of a run is compiled from; the devices may be simulated.

    Args:
        hyper: the run's numbers, which are inputs of the step.
        state, batch: shapes, dtypes and shardings.
        param_axes: names of the axes of each parameter.
        frozen: models that do not train, by name; their parameters are inputs of the step.
        init: from the run's numbers to its first state, compiled.
    """

    run: Run
    mesh: DeviceMesh
    hyper: Hyperparameters
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    param_axes: Any
    frozen: dict[str, FrozenPart]
    init: Callable[[Hyperparameters], TrainState]

    @property
    def trainable(self) -> list[str]:
        """The names of the parameters that train."""
        return trainable_names("train.trainable", self.run.trainable, by_name(self.state.params))

    @property
    def flops_per_step(self) -> int:
        """FLOPs of a step by the formula: those of training, and of other models forward."""
        run = self.run
        others = sum(part.flops_per_row for part in self.frozen.values())
        per_row = train_flops(run.model, run.layout.lengths, self.trainable) + others
        return run.batch_size * per_row

    def of(self, run: Run) -> "TrainProgram":
        """Returns the program of a run that differs in numbers only, without another trace."""
        return dataclasses.replace(self, run=run, hyper=as_inputs(run.hyperparameters))


def train_program(run: Run, mesh: DeviceMesh) -> TrainProgram:
    """Returns the program of `run` on `mesh`.

    Raises:
        UserError: if the mesh does not divide the batch, a microbatch, a row or a parameter, a
            pattern of `train.trainable` matches no parameter, the loss names other tasks, or the
            teacher does not fit the run.
    """
    sharding = batch_sharding(mesh, run.batch_size)
    batch_sharding(
        mesh, run.batch_size // run.microbatches, owner="train.batch_size / train.microbatches"
    )
    check_lengths(mesh, run.layout.lengths)
    names = [task.name for task in run.task.tasks]
    check_tasks(run.loss, names, run.model.config.num_weighted_tasks)
    check_teacher_maps(run.loss, run.model.config.teacher_embed_dim)
    with on_mesh(mesh):
        state, axes = abstract_state(
            run.model,
            run.hyperparameters,
            mesh,
            param_dtype=run.param_dtype,
            offload_optimizer=run.offload_optimizer,
            trainable=run.trainable,
            base_dtype=run.base_dtype,
        )
    batch = {
        name: jax.ShapeDtypeStruct((run.batch_size, length), jnp.int32, sharding=sharding)
        for name, length in run.layout.lengths.items()
    }
    # It runs once, so optimizing it for a CPU would take longer than it saves.
    on_cpu = mesh.platform == "cpu"
    init = jax.jit(
        lambda hyper: initial_state(
            run.model, hyper, axes, run.param_dtype, run.trainable, run.base_dtype
        ),
        out_shardings=jax.tree.map(lambda x: x.sharding, state),
        compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
    )
    frozen = open_frozen(run, mesh)
    return TrainProgram(run, mesh, as_inputs(run.hyperparameters), state, batch, axes, frozen, init)

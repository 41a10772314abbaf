"""The program of a run: the shapes of what its step takes, where they live, and the step itself."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.core.numbers import as_inputs
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import batch_sharding, check_lengths, on_mesh
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.run import Run
from t5lite.training.state import TrainState, abstract_state, initial_state
from t5lite.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """The one program of a run, for devices that need not be there.

    Args:
        hyper: the run's numbers, which enter the step as inputs.
        state, batch: shapes, dtypes and shardings.
        param_axes: names of the axes of each parameter.
        init: from the run's numbers to its first state, compiled.
    """

    run: Run
    mesh: DeviceMesh
    hyper: Hyperparameters
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    param_axes: Any
    init: Callable[[Hyperparameters], TrainState]

    def of(self, run: Run) -> "TrainProgram":
        """Returns the program of a run that differs in numbers only, without tracing it again."""
        return dataclasses.replace(self, run=run, hyper=as_inputs(run.hyperparameters))

    def lower(self) -> jax.stages.Lowered:
        """Returns the step, traced; compiled it takes (hyper, state, batch) of just these shapes.

        The state is donated, and comes back where it was.
        """
        shardings = jax.tree.map(lambda x: x.sharding, self.state)
        step = make_train_step(
            self.run.model,
            self.param_axes,
            microbatches=self.run.microbatches,
            offloaded=shardings.opt_state if self.run.offload_optimizer else None,
        )
        jitted = jax.jit(step, donate_argnums=1, out_shardings=(shardings, None))
        with on_mesh(self.mesh):
            return jitted.lower(self.hyper, self.state, self.batch)


def train_program(run: Run, mesh: DeviceMesh) -> TrainProgram:
    """Returns the program of `run` on `mesh`.

    Raises:
        UserError: where the mesh does not divide the batch, a microbatch, a row or a parameter.
    """
    sharding = batch_sharding(mesh, run.batch_size)
    batch_sharding(
        mesh, run.batch_size // run.microbatches, owner="train.batch_size / train.microbatches"
    )
    check_lengths(mesh, run.layout.lengths)
    with on_mesh(mesh):
        state, axes = abstract_state(
            run.model,
            run.hyperparameters,
            mesh,
            param_dtype=run.param_dtype,
            offload_optimizer=run.offload_optimizer,
        )
    batch = {
        name: jax.ShapeDtypeStruct((run.batch_size, length), jnp.int32, sharding=sharding)
        for name, length in run.layout.lengths.items()
    }
    # Run once: on a CPU most of the time of compiling it would go into making it fast.
    on_cpu = mesh.platform == "cpu"
    init = jax.jit(
        lambda hyper: initial_state(run.model, hyper, axes, run.param_dtype),
        out_shardings=jax.tree.map(lambda x: x.sharding, state),
        compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
    )
    return TrainProgram(run, mesh, as_inputs(run.hyperparameters), state, batch, axes, init)

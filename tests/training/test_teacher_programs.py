"""A teacher on every mesh, in sweeps and in replays: as on one device, alone and once."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from t5lite.core.lazy import by_name
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.parallel.mesh import Mesh
from t5lite.parallel.sharding import batch_sharding, make_global
from t5lite.planning.costs import costs_of
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.determinism import verify_determinism
from t5lite.training.frozen import load_frozen
from t5lite.training.program import train_program
from t5lite.training.slot import VectorizedTrial
from t5lite.training.step import lower_train_step
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small
from tests.training.teachers import LOSS, batches, distilled_run, save_teacher

# Sums in another order, in float32.
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The MODEL_DIR of a decoder-only teacher."""
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def make(make_run):
    return lambda *args, **changes: distilled_run(make_run, *args, **changes)


def steps_of(run, devices, count=3):
    """The mean loss and gradient norm of some steps, and the parameters after them."""
    mesh = run.mesh.make(jax.devices()[:devices])
    program = train_program(run, mesh)
    compiled = lower_train_step(program).compile()
    state = program.init(program.hyper)
    frozen = load_frozen(program.frozen, print)
    place = make_global(batch_sharding(mesh, run.batch_size), run.batch_size)
    metrics = []
    for batch in batches(run, count):
        state, sums = compiled(program.hyper, state, place(jax.device_get(batch)), frozen)
        metrics.append([float(sums["loss"] / sums["tokens"]), float(sums["gradient_norm"])])
    return np.array(metrics), frozen["teacher"]


@pytest.mark.proof
@pytest.mark.parametrize("packed", [False, True])
def test_meshes_microbatches_and_chunks_train_as_one_device(packed, teacher, make, tmp_path):
    choices = {"packed": packed, "length_multiple": 4}
    expected, _ = steps_of(make(tmp_path, teacher, mesh=Mesh(data=1), **choices), 1)
    chunked = dataclasses.replace(LOSS, cross_entropy=CrossEntropy(z_loss=0.0, chunks=3))
    for devices, changes in (
        (8, {"mesh": Mesh(data=2, fsdp=2, tensor=2)}),
        (1, {"mesh": Mesh(data=1), "microbatches": 2, "loss": chunked}),
        (4, {"mesh": Mesh(data=2, sequence=2), "loss": chunked}),
    ):
        found, params = steps_of(make(tmp_path, teacher, **choices, **changes), devices)
        np.testing.assert_allclose(found, expected, rtol=2e-5, err_msg=str(changes))
    kernel = params["decoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == kernel.shape


@pytest.mark.proof
def test_trials_of_one_program_share_a_teacher_and_train_as_alone(teacher, make, tmp_path):
    losses = [LOSS, dataclasses.replace(LOSS, weight=0.1, temperature=4.0)]
    runs = [make(tmp_path / f"{i}", teacher, loss=loss, seed=i) for i, loss in enumerate(losses)]
    small.train_vectorized(
        (VectorizedTrial(run=run, config_text="# all\n", command=["t5lite"]) for run in runs),
        2,
        small.mesh(runs[0]),
        evaluate=lambda run: lambda params: small.NO_SCORES,
    )
    for run in runs:
        alone = small.train(dataclasses.replace(run, model_dir=f"{run.model_dir}_alone"))
        checkpoints = StoredCheckpoints(pathlib.Path(run.model_dir) / FOLDER)
        state = small.program_of(run).state
        together = by_name(checkpoints.restore(4, state).params)
        for name, value in by_name(alone.params).items():
            np.testing.assert_allclose(together[name], value, atol=2e-4, err_msg=name)


@pytest.mark.proof
def test_steps_with_a_teacher_are_deterministic(teacher, make, tmp_path):
    run = make(tmp_path / "run", teacher)
    text = verify_determinism(small.program_of(run), 2)
    assert text.startswith("deterministic: 2 steps taken again")


@pytest.mark.proof
def test_a_plan_counts_the_memory_and_the_products_of_the_teacher(teacher, make, tmp_path):
    run = make(tmp_path / "run", teacher)
    program = small.program_of(run)
    frozen = {name: part.params for name, part in program.frozen.items()}
    state = program.state
    costs = costs_of(
        lower_train_step(program),
        state.params,
        state.opt_state,
        program.mesh.shape,
        model_flops=float(program.flops_per_step),
        device=None,
        frozen=frozen,
    )
    size = sum(x.size * 4 for x in jax.tree.leaves(frozen))
    assert costs.memory.frozen == size
    plain = dataclasses.replace(run, teacher=None, loss=CrossEntropy())
    without = small.program_of(plain).flops_per_step
    assert program.flops_per_step == without + 8 * program.frozen["teacher"].flops_per_row
    assert costs.program_flops == pytest.approx(costs.model_flops, rel=1e-3)

"""Processes that together train a small run or restore it; the first prints what its state is.

    python -m tests.training.one_of_many COUNT ADDRESS ACTION TEXT DATA_DIR MODEL_DIR

All are forks of one that has imported the package, which saves seconds each.
"""

import dataclasses
import errno
import hashlib
import os
import pathlib
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from t5lite.core.lazy import by_name
from t5lite.parallel.mesh import Mesh
from t5lite.parallel.processes import start_processes
from t5lite.training.bad_steps import BadSteps
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.loop import train
from t5lite.training.program import train_program
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small
from tests.training.faults import NOT_A_NUMBER, MarkedLoss, mark_batches


def digest(state):
    """Of all arrays, names and bytes."""
    seen = hashlib.sha256()
    for name, leaf in sorted(by_name(state).items()):
        whole = multihost_utils.process_allgather(leaf, tiled=True)
        seen.update(name.encode() + np.asarray(whole).tobytes())
    return seen.hexdigest()


def main(action, text, data_dir, model_dir):
    start_processes()
    run = small.run(
        pathlib.Path(text),
        data_dir,
        pathlib.Path(model_dir),
        mesh=Mesh(fsdp=2, tensor=2),
        total_steps=4,
        packed=True,
    )
    if action == "train_with_bad_batches":
        mark_batches(pytest.MonkeyPatch(), {4: NOT_A_NUMBER, 5: NOT_A_NUMBER})
        rules = BadSteps(max_in_a_row=2)
        run = dataclasses.replace(run, loss=MarkedLoss(), bad_steps=rules, total_steps=6)
    mesh = run.mesh.make()
    if action == "train_with_a_stale_mount" and jax.process_index() == 1:
        read = ocp.PyTreeCheckpointHandler.restore

        def fail_at_4(self, folder, **arguments):
            if folder.parent.name == "4":
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return read(self, folder, **arguments)

        pytest.MonkeyPatch().setattr(ocp.PyTreeCheckpointHandler, "restore", fail_at_4)
    if action.startswith("train"):
        program = train_program(run, mesh)
        state = train(program, evaluate=lambda params: small.NO_SCORES, config_text="")
    else:
        checkpoints = StoredCheckpoints(pathlib.Path(model_dir) / FOLDER)
        state = checkpoints.restore(4, train_program(run, mesh).state)
    made = digest(state)
    if jax.process_index() == 0:
        print("state", made)


def fork(environment, *words):
    """Runs `main` in a fork with that environment, and returns the number of its process."""
    if child := os.fork():
        return child
    os.environ.update(environment)
    main(*words)
    sys.exit()


def fork_all(count, address, *words):
    """Runs `main` in that many processes; the result is 0 if all of them ended well."""
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count}
    children = [fork({**job, "JAX_PROCESS_ID": str(i)}, *words) for i in range(int(count))]
    return max(os.waitpid(child, 0)[1] for child in children) and 1


if __name__ == "__main__":
    sys.exit(fork_all(*sys.argv[1:]))

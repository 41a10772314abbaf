"""One process of several: trains a small run or restores it, and prints what its state is."""

import hashlib
import pathlib
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.core.lazy import by_name
from t5lite.parallel.mesh import Mesh
from t5lite.parallel.processes import start_processes
from t5lite.training.checkpoints import FOLDER, Checkpoints
from t5lite.training.loop import train
from t5lite.training.program import train_program
from tests import small


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
    mesh = run.mesh.make()
    if action == "train":
        program = train_program(run, mesh)
        state = train(program, evaluate=lambda params: small.NO_SCORES, config_text="")
    else:
        checkpoints = Checkpoints(pathlib.Path(model_dir) / FOLDER, read_only=True)
        state = checkpoints.restore(4, train_program(run, mesh).state)
        checkpoints.close()
    made = digest(state)
    if jax.process_index() == 0:
        print("state", made)


if __name__ == "__main__":
    main(*sys.argv[1:])

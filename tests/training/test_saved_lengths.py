"""Runs keep the lengths that a converted checkpoint has for other programs."""

import jax
import numpy as np
import pytest

from t5lite.core.lazy import LazyArray
from t5lite.training.lazy_checkpoints import write_lazily
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small

LENGTHS = {"decoder": {"max_position_embeddings": 8192}}


def lazy(array):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return LazyArray(array.shape, array.dtype, lambda: np.asarray(array), device)


@pytest.mark.proof
def test_lengths_of_a_converted_checkpoint_are_those_of_runs_from_it(make_run, tmp_path):
    start = make_run(tmp_path / "run", total_steps=1)
    params = jax.tree.map(lazy, small.params(start.model))
    state = {"step": lazy(np.zeros((), np.int32)), "params": params}
    source = write_lazily(tmp_path / "converted", 0, state, {"lengths": LENGTHS})
    # The second one resumes from the checkpoint of the first.
    for steps in (1, 2):
        run = make_run(tmp_path / "run", total_steps=steps, initial_checkpoint=source)
        small.train(run)
        saved = StoredCheckpoints(tmp_path / "run" / "checkpoints").about(steps)
        assert saved["lengths"] == LENGTHS

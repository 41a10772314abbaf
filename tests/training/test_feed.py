import contextlib
import itertools
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.training.feed import Feed
from tests import small
from tests.data import streams


@pytest.fixture
def make_run(text_file, data_dir, tmp_path):
    return lambda **changes: small.run(text_file, data_dir, tmp_path / "run", **changes)


def go(run, count, saved=None, rows=range(8)):
    """The next `count` batches, where the data stands then, and what was logged."""
    logged = []
    feed = Feed(run, list(rows), saved, log=logged.append)
    with contextlib.closing(feed):
        batches = list(itertools.islice(feed, count))
        return batches, feed.state(), logged


def test_a_saved_state_gives_the_batches_after_it(make_run):
    run = make_run()
    whole, end, _ = go(run, 9)
    first, saved, _ = go(run, 4)
    second, again, logged = go(run, 5, saved)
    assert streams.digest(first + second) == streams.digest(whole)
    assert again == end
    assert (saved["batches"], end["batches"], logged) == (4, 9, [])


def test_skipped_batches_change_no_other_batch(make_run):
    whole, _, _ = go(make_run(), 12)
    run = make_run(skip_batches=[(3, 5), (9, 9)])
    kept, state, logged = go(run, 8)
    wanted = [whole[number - 1] for number in (1, 2, 6, 7, 8, 10, 11, 12)]
    assert streams.digest(kept) == streams.digest(wanted)
    assert state["batches"] == 12
    assert logged == [f"skipped the batches up to {n}: train.skip_batches" for n in (5, 9)]
    # The same, stopped anywhere.
    for stop in (1, 2, 3, 6):
        first, saved, _ = go(run, stop)
        second, again, _ = go(run, 8 - stop, saved)
        assert streams.digest(first + second) == streams.digest(wanted)
        assert again["rows"] == state["rows"]


def test_a_resumed_run_may_skip_other_batches(make_run):
    whole, _, _ = go(make_run(), 12)
    _, saved, _ = go(make_run(), 6)
    batches, _, logged = go(make_run(skip_batches=[(2, 3), (8, 10)]), 3, saved)
    assert streams.digest(batches) == streams.digest([whole[6], whole[10], whole[11]])
    assert logged[0] == (
        "batches up to 6 were used before [(2, 3)] of train.skip_batches was set; only later "
        "batches of it are skipped"
    )


def test_another_data_seed_restarts_the_data_once(make_run):
    _, saved, _ = go(make_run(), 4)
    run = make_run(data_seed=5)
    fresh, _, _ = go(run, 6)
    first, state, logged = go(run, 3, saved)
    assert logged == ["the data restarts with train.data_seed 5"]
    second, _, logged = go(run, 3, state)
    assert logged == []
    assert streams.digest(first + second) == streams.digest(fresh)
    assert streams.digest(fresh) != streams.digest(go(make_run(), 6)[0])


def test_other_data_is_rejected_unless_the_data_restarts(make_run, text_file):
    _, saved, _ = go(make_run(), 2)
    with text_file.open("a") as file:
        file.write("one more line\n")
    try:
        with pytest.raises(UserError, match=r"was trained with task.data 40 records, .*got 41 rec"):
            go(make_run(), 1, saved)
        assert len(go(make_run(data_seed=1), 1, saved)[0]) == 1
    finally:
        text_file.write_text(text_file.read_text().replace("one more line\n", ""))


def test_each_of_several_processes_restores_its_own_rows(make_run):
    whole, _, _ = go(make_run(), 6)
    _, saved, _ = go(make_run(), 3)
    for rows in ([0, 1, 2], [5], [3, 4, 6, 7]):
        batches, _, _ = go(make_run(), 3, saved, rows)
        for batch, of_all in zip(batches, whole[3:], strict=True):
            for name, array in batch.items():
                np.testing.assert_array_equal(array, of_all[name][rows])


GATHER = """
import sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
from t5lite.training.feed import _of_all_processes
rank = jax.process_index()
parts = _of_all_processes({row: {"example": "x" * row * 50} for row in range(rank, 5, 2)})
merged = {int(row): cursor for part in parts for row, cursor in part.items()}
assert merged == {row: {"example": "x" * row * 50} for row in range(5)}, merged
"""


@pytest.mark.proof
def test_two_processes_exchange_their_cursors():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", GATHER, str(rank), str(port)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=small.PATIENCE)
        assert process.returncode == 0, err

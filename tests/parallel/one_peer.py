"""One process of several, which wait for each other again and again, as those of a run do."""

import contextlib
import pathlib
import sys

import jax

from t5lite.cli import main as cli
from t5lite.core.run_directory import attempt
from t5lite.parallel import peers
from t5lite.parallel.peers import lost_peers_named
from t5lite.parallel.processes import everywhere, start_processes

# Shorter than a user waits.
peers.SILENCE_SECONDS = 3.0
peers.BEAT_SECONDS = 0.5
peers.END_GRACE_SECONDS = 1.0


def work():
    start_processes()
    first = jax.process_index() == 0
    folder = pathlib.Path(sys.argv[1])
    with attempt(folder, ["train"]) if first else contextlib.nullcontext(), lost_peers_named():
        assert everywhere(True)
        print("step", flush=True)
        while everywhere(True):
            pass


if __name__ == "__main__":
    cli._run(work)

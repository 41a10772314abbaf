"""Times steps with bad-step handling and watchdog against steps without, in turn.

    python -m experiments.damage.steps --work=FOLDER

Two processes train the quickstart, one with both and one with neither. They hand each other the
turn after every step, so that whatever slows the machine slows both. Appends a line to
`results.jsonl` in the folder.
"""

import functools
import json
import multiprocessing
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np
from absl import app, flags

from t5lite.cli.arguments import parse_arguments
from t5lite.cli.train import train_command
from t5lite.training import loop

WORK = flags.DEFINE_string("work", None, "Directory for runs and results.", required=True)
STEPS = flags.DEFINE_integer("steps", 600, "Steps of each run; the first 50 are not timed.")
CONTROL = flags.DEFINE_boolean("control", False, "Whether both runs have neither.")
UNTIMED = 50
RUNS = ("on", "off")
OFF = ("train.bad_steps=None", "train.watchdog=None")


class Turns:
    """A feed that returns a batch when it is this process's turn, and times what it does then."""

    def __init__(self, feed: Any, peer: Connection, seconds: list[float], *, first: bool) -> None:
        self._feed = feed
        self._peer = peer
        self._seconds = seconds
        self._began: float | None = time.perf_counter() if first else None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._began is not None:
            self._seconds.append(time.perf_counter() - self._began)
            self._peer.send(None)
        self._peer.recv()
        self._began = time.perf_counter()
        return next(self._feed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)


def train_in_turns(
    name: str, folder: str, bindings: Sequence[str], peer: Connection, result: Connection
) -> None:
    """Trains one of the two runs, and sends the seconds of its steps."""
    # A step is complete when the loop asks for the next batch.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    seconds: list[float] = []
    of_run = loop.open_feed

    def open_feed(*args: Any, **options: Any) -> Turns:
        return Turns(of_run(*args, **options), peer, seconds, first=name == "on")

    loop.open_feed = functools.wraps(of_run)(open_feed)
    bindings = [f"MODEL_DIR={folder}/{name}", "train.show_examples=0", *bindings]
    arguments = ["--gin_file=gin/run/quickstart.gin", *(f"--gin.{each}" for each in bindings)]
    values, _, parsed = parse_arguments("train", arguments)
    train_command(values, parsed)
    peer.send(None)
    result.send(seconds)


def main(_: list[str]) -> None:
    work = pathlib.Path(WORK.value)
    shutil.rmtree(work / "turns", ignore_errors=True)
    context = multiprocessing.get_context("spawn")
    peers = context.Pipe()
    results = {name: context.Pipe() for name in RUNS}
    length = (f"STEPS={STEPS.value}", f"train.eval_every_steps={STEPS.value}")
    processes = []
    for name, peer in zip(RUNS, peers, strict=True):
        bindings = (*length, *(OFF if name == "off" or CONTROL.value else ()))
        arguments = (name, f"{work}/turns", bindings, peer, results[name][1])
        processes.append(context.Process(target=train_in_turns, args=arguments))
        processes[-1].start()
    seconds = {name: results[name][0].recv()[UNTIMED:] for name in RUNS}
    for process in processes:
        process.join()
    count = min(map(len, seconds.values()))
    on, off = (np.array(seconds[name][:count]) for name in ("on", "off"))
    # Means would be those of a few interrupted steps. The bootstrap draws blocks of neighbours.
    blocks = np.array_split(np.log(on / off), count // 10)
    rng = np.random.default_rng(0)
    drawn = [
        np.median(np.concatenate([blocks[i] for i in rng.integers(len(blocks), size=len(blocks))]))
        for _ in range(2000)
    ]
    row = {
        "part": "steps, both without" if CONTROL.value else "steps",
        "pairs": count,
        "median_seconds_on": float(np.median(on)),
        "median_seconds_off": float(np.median(off)),
        "median_ratio": float(np.exp(np.median(np.log(on / off)))),
        "standard_error": float(np.std(drawn)),
        "ratio_of_sums": float(on.sum() / off.sum()),
    }
    with (work / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row)


if __name__ == "__main__":
    app.run(main)

"""Trainable share, memory and step time of every method, alone and timed in turns.

    python -m experiments.peft.measure --data=runs/peft/data --work=runs/peft --results=costs.jsonl

Prints one JSON object per method and writes them to --results.
"""

import itertools
import json
import math
import pathlib
import time

import jax
import numpy as np
from absl import app, flags

from experiments.peft.methods import METHODS
from t5lite import configurables
from t5lite.core.lazy import by_name
from t5lite.training.feed import open_feed
from t5lite.training.program import train_program
from t5lite.training.step import lower_train_step

DATA = flags.DEFINE_string("data", None, "Folder that prepare.py wrote.", required=True)
WORK = flags.DEFINE_string("work", "runs/peft", "Has pieces.model.")
RESULTS = flags.DEFINE_string("results", None, "Where results are written.", required=True)
ROUNDS = flags.DEFINE_integer("rounds", 9, "Timed rounds of each method, in turn.")
STEPS = flags.DEFINE_integer("steps", 10, "Steps of a timed round.")


def load_run(method):
    """Returns the run of a method on the questions."""
    files = ["experiments/peft/finetune.gin"]
    if method.adapter is not None:
        files.append(f"gin/adapters/{method.adapter}.gin")
    given = (
        f"DATA={DATA.value}/trec",
        f"VOCABULARY={WORK.value}/pieces.model",
        "Supervised.targets_length=4",
    )
    return configurables.load(files, [*given, *method.bindings], [], "train")[0]


class Trainer:
    """A compiled step, its state, and some batches of its run."""

    def __init__(self, run):
        self.program = train_program(run, run.mesh.make())
        self.step = lower_train_step(self.program).compile()
        self.state = self.program.init(self.program.hyper)
        feed = open_feed(self.program, None, log=print)
        self.batches = list(itertools.islice(feed, STEPS.value))
        feed.close()

    def seconds_per_step(self):
        """Returns the mean time of the steps of a round."""
        started = time.perf_counter()
        for batch in self.batches:
            hyper = self.program.hyper
            self.state, sums = self.step(hyper, self.state, jax.device_put(batch), {})
        jax.block_until_ready(sums)
        return (time.perf_counter() - started) / len(self.batches)

    def costs(self):
        """Returns numbers of parameters, and bytes while a step runs."""
        params = by_name(self.state.params)
        trained = set(self.program.trainable)
        kept = self.step.memory_analysis()
        optimizer = (self.state.opt_state, self.state.ranks)
        return {
            "parameters": sum(math.prod(x.shape) for x in params.values()),
            "trained_parameters": sum(math.prod(params[name].shape) for name in trained),
            "parameter_bytes": sum(x.nbytes for x in params.values()),
            "optimizer_bytes": sum(x.nbytes for x in jax.tree.leaves(optimizer)),
            "temporary_bytes": kept.temp_size_in_bytes,
        }


def main(_):
    """Compiles all methods, then times them in turns."""
    trainers = {name: Trainer(load_run(method)) for name, method in METHODS.items()}
    rounds = [
        {name: trainer.seconds_per_step() for name, trainer in trainers.items()}
        for _ in range(ROUNDS.value + 1)
    ][1:]
    lines = []
    for name, trainer in trainers.items():
        seconds = [times[name] for times in rounds]
        ratios = [times[name] / times["full"] for times in rounds]
        lines.append(
            {
                "method": name,
                **trainer.costs(),
                "seconds_per_step": round(float(np.median(seconds)), 4),
                "ratio_to_full": round(float(np.median(ratios)), 2),
                "ratios": [round(ratio, 2) for ratio in ratios],
            }
        )
        print(json.dumps(lines[-1]), flush=True)
    pathlib.Path(RESULTS.value).write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    app.run(main)

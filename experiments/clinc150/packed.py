"""Packed and unpacked fine-tuning on the same examples: losses, and examples per second.

    python experiments/clinc150/packed.py --data=runs/clinc150/full --vocabulary=FILE --model=text

Prints one JSON object per model and appends it to --results.
"""

import itertools
import json
import os
import pathlib
import time

import jax
import numpy as np
from absl import app, flags

from t5lite import configurables
from t5lite.training.feed import open_feed
from t5lite.training.program import train_program
from t5lite.training.step import lower_train_step

DATA = flags.DEFINE_string("data", None, "Folder of train.jsonl.", required=True)
VOCABULARY = flags.DEFINE_string("vocabulary", None, "A SentencePiece model.", required=True)
MODEL = flags.DEFINE_enum("model", "text", ["text", "encoder"], "Which run file.")
RESULTS = flags.DEFINE_string("results", None, "Where results are appended.", required=True)
EQUAL_STEPS = flags.DEFINE_integer("equal_steps", 200, "Steps whose losses are compared.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Timed rounds of each kind, in turn.")
STEPS = flags.DEFINE_integer("steps", 40, "Steps of a timed round.")

HERE = "experiments/clinc150"
# Tokens of inputs and targets in a packed row.
PACKED_LENGTHS = (128, 32)
# The longest training text has 28 words; an intent is one. Each ends with an end of sequence.
UNPACKED_LENGTHS = (29, 2)


def load_run(lengths, *bindings):
    """Returns the run of a run file with rows of these lengths."""
    given = [f"DATA='{DATA.value}'", f"VOCABULARY='{VOCABULARY.value}'"]
    if MODEL.value == "text":
        given.append(f"Supervised.inputs_length={lengths[0]}")
        given.append(f"Supervised.targets_length={lengths[1]}")
    else:
        given.append(f"Classification.inputs_length={lengths[0]}")
    files = [f"{HERE}/{MODEL.value}.gin"]
    return configurables.load(files, [*given, *bindings], [], "train")[0]


def packed_run(*bindings):
    """Returns the run whose rows hold as many examples as fit."""
    return load_run(PACKED_LENGTHS, *bindings)


def unpacked_run(rows, *bindings):
    """Returns the run whose rows hold one example, as short as the longest example allows."""
    return load_run(UNPACKED_LENGTHS, f"BATCH_SIZE={rows}", "train.packed=False", *bindings)


class Trainer:
    """A compiled step, its state, and the batches of its run."""

    def __init__(self, run):
        self.program = train_program(run, run.mesh.make())
        self.step = lower_train_step(self.program).compile()
        self.state = self.program.init(self.program.hyper)
        self.feed = open_feed(self.program, None, log=print)

    def train(self, batch):
        """Takes one step and returns the sums of its loss."""
        hyper = self.program.hyper
        self.state, sums = self.step(hyper, self.state, jax.device_put(batch), {})
        return sums


def count_examples(batch):
    """Returns the number of examples in a batch."""
    return int(batch["encoder_segment_ids"].max(axis=1).sum())


def unpack(batch, lengths, rows):
    """Returns the same examples in the same order, one in a row; the last rows are padding."""
    ids = batch["encoder_segment_ids"]
    examples = [(row, n) for row in range(len(ids)) for n in range(1, ids[row].max() + 1)]
    result = {name: np.zeros((rows, length), np.int32) for name, length in lengths.items()}
    for name, values in batch.items():
        segments = batch[f"{name.split('_')[0]}_segment_ids"]
        for target, (row, number) in enumerate(examples):
            here = segments[row] == number
            found = values[row, here]
            result[name][target, : len(found)] = 1 if name.endswith("segment_ids") else found
    return result


def losses(batches, rows):
    """Returns the losses per target of packed and unpacked training on the same examples."""
    # Dropout would draw other masks for other shapes.
    plain = "T5Config.dropout_rate=0.0"
    packed = Trainer(packed_run(plain))
    unpacked = Trainer(unpacked_run(rows, plain))
    lengths = unpacked.program.run.layout.lengths
    both = []
    for batch in batches:
        pair = (packed.train(batch), unpacked.train(unpack(batch, lengths, rows)))
        assert float(pair[0]["tokens"]) == float(pair[1]["tokens"])
        both.append([float(sums["loss"] / sums["tokens"]) for sums in pair])
    packed.feed.close()
    unpacked.feed.close()
    difference = [
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
        for a, b in zip(
            jax.tree.leaves(packed.state.params),
            jax.tree.leaves(unpacked.state.params),
            strict=True,
        )
    ]
    return np.array(both), max(difference)


def round_of(trainer):
    """Returns examples per second over some steps, data included."""
    examples = 0
    started = time.perf_counter()
    for batch in itertools.islice(trainer.feed, STEPS.value):
        examples += count_examples(batch)
        sums = trainer.train(batch)
    jax.block_until_ready(sums)
    return examples / (time.perf_counter() - started)


def main(_):
    """Compares the losses on the same examples, then times both kinds in turn."""
    packed = Trainer(packed_run())
    batches = list(itertools.islice(packed.feed, EQUAL_STEPS.value))
    counts = [count_examples(batch) for batch in batches]
    both, difference = losses(batches, max(counts))
    unpacked = Trainer(unpacked_run(round(float(np.mean(counts)))))
    rates = [(round_of(packed), round_of(unpacked)) for _ in range(ROUNDS.value + 1)][1:]
    medians = np.median(rates, axis=0)
    line = {
        "model": MODEL.value,
        "rows": len(batches[0]["encoder_segment_ids"]),
        "tokens_per_row": batches[0]["encoder_segment_ids"].shape[1],
        "tokens_fraction": round(
            float(np.mean([b["encoder_segment_ids"] > 0 for b in batches])), 3
        ),
        "examples_per_step": round(float(np.mean(counts)), 1),
        "steps": len(batches),
        "first_losses": both[0].tolist(),
        "last_losses": both[-1].tolist(),
        "max_loss_difference": float(np.abs(both[:, 0] - both[:, 1]).max()),
        "max_parameter_difference": difference,
        "packed_examples_per_second": round(float(medians[0]), 1),
        "unpacked_examples_per_second": round(float(medians[1]), 1),
        "ratio": round(float(medians[0] / medians[1]), 2),
        "ratios": [round(a / b, 2) for a, b in rates],
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(line), flush=True)
    with pathlib.Path(RESULTS.value).open("a") as file:
        file.write(json.dumps(line) + "\n")
    packed.feed.close()
    unpacked.feed.close()


if __name__ == "__main__":
    app.run(main)

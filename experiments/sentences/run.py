"""Trains every fold of every data set with every method, and appends the results as they come.

    python experiments/sentences/run.py --data=runs/sentences --results=results.jsonl

One process compiles the step of each loss once and trains all folds with it. Folds that --results
has are skipped, so an interrupted run resumes.
"""

import collections
import dataclasses
import json
import pathlib
import time

import jax
import jax.numpy as jnp
from absl import app, flags

from t5lite import configurables
from t5lite.core.due import due
from t5lite.data.questions import questions
from t5lite.data.sources.file_source import FileSource
from t5lite.data.text.vocabulary_training import VocabularyTraining, train_vocabulary
from t5lite.inference.class_predictions import make_predict_classes
from t5lite.parallel.sharding import batch_sharding, make_global
from t5lite.training.feed import open_feed
from t5lite.training.program import train_program
from t5lite.training.step import lower_train_step

DATA = flags.DEFINE_string("data", None, "Folder that prepare.py wrote.", required=True)
RESULTS = flags.DEFINE_string("results", None, "Where results are appended.", required=True)
DATA_SET = flags.DEFINE_list("data_sets", ["cr", "mpqa", "mr", "subj"], "In this order.")
METHOD = flags.DEFINE_list("methods", [], "Names of methods; all if not given.")
FOLDS = flags.DEFINE_integer("folds", 10, "How many folds, from the first.")
BIND = flags.DEFINE_multi_string("bind", [], "More bindings of all runs.")

HERE = "experiments/sentences"
# About ten epochs of CR, MR and Subj, and twelve of MPQA.
STEPS = {"cr": 600, "mpqa": 400, "mr": 1800, "subj": 1800}
# Augmentations by method; they change the words, so ids are cached for the other methods only.
AUGMENTATIONS = {"drop words": "DropWords", "swap words": "SwapWords", "span noise": "SpanNoise"}
# Losses of the other methods.
LOSSES = {"R-Drop": "RDrop", "adversarial": "Adversarial"}
# Trains as many steps by span corruption first.
PRETRAINED = "span corruption"
METHODS = ("baseline", *AUGMENTATIONS, *LOSSES, PRETRAINED)
EVALUATION_ROWS = 64


class Trainer:
    """The compiled step of runs that differ in data and numbers only."""

    def __init__(self, run):
        self.program = train_program(run, run.mesh.make())
        self.step = lower_train_step(self.program).compile()
        self.predict = None
        if run.model.classes is not None:
            self.predict = make_predict_classes(
                run.model,
                self.program.mesh,
                inputs_length=run.task.objective.inputs_length,
                batch_size=EVALUATION_ROWS,
            )

    def states(self, run, pretrained):
        """Yields the number of each step of a run and the state after it.

        Args:
            pretrained: parameters to start from, by the names of the largest parts; the others are
                initialised.
        """
        program = self.program.of(run)
        state = program.init(program.hyper)
        # The step overwrites its input, so parameters and average are two copies.
        start, average = (jax.tree.map(jnp.copy, pretrained) for _ in range(2))
        state = dataclasses.replace(
            state, params={**state.params, **start}, average={**state.average, **average}
        )
        to_devices = make_global(batch_sharding(program.mesh, run.batch_size), run.batch_size)
        feed = open_feed(program, None, log=print)
        try:
            for number, batch in zip(range(1, run.total_steps + 1), feed, strict=False):
                state, _ = self.step(program.hyper, state, to_devices(batch), {})
                yield number, state
        finally:
            feed.close()

    def accuracy(self, params, examples):
        """Returns the fraction of examples whose class is right; it is at their first token."""
        found = self.predict(params, examples)
        right = [
            one.numbers[0] == example["targets"][0]
            for one, example in zip(found, examples, strict=True)
        ]
        return sum(right) / len(right)


def vocabulary_of(folder):
    """Returns the vocabulary of a fold: the words that occur at least twice in its training."""
    path = folder / "words.model"
    if path.exists():
        return path
    records = map(json.loads, (folder / "train.jsonl").open())
    words = collections.Counter(word for r in records for word in r["text"].lower().split())
    training = VocabularyTraining(
        source=FileSource(files={"train": str(folder / "train.jsonl")}, fields=("text", "label")),
        output=str(path),
        preprocessors=["lowercase"],
        text="{label} {text}",
        model_type="word",
        # With padding, end of sequence, unknown and the two classes.
        size=sum(count > 1 for count in words.values()) + 5,
        character_coverage=1.0,
        byte_fallback=False,
    )
    train_vocabulary(training, on_line=lambda: None)
    return path


def load_run(file, data_set, fold, method):
    """Returns the run of a fold."""
    folder = pathlib.Path(DATA.value) / data_set / str(fold)
    bindings = [
        f"DATA='{folder}'",
        f"VOCABULARY='{vocabulary_of(folder)}'",
        f"STEPS={STEPS[data_set]}",
        f"SEED={fold}",
    ]
    if method in AUGMENTATIONS:
        name = AUGMENTATIONS[method]
        bindings += [f"Task.augmentations=[@{name}()]", f"{name}.fields=['text']"]
    else:
        bindings.append(f"Task.token_cache='{folder / 'tokens'}'")
    if method in LOSSES:
        bindings.append(f"train.loss=@{LOSSES[method]}()")
    files = [f"{HERE}/{file}.gin"]
    return configurables.load(files, [*bindings, *BIND.value], [], "train")[0]


def trainer_of(run, trainers):
    """Returns the trainer of a run, which is compiled when the first of its kind needs it."""
    kind = (run.model, type(run.loss))
    if kind not in trainers:
        trainers[kind] = Trainer(run)
    return trainers[kind]


def pretrained_by_spans(data_set, fold, trainers):
    """Returns the embedding and the encoder after span corruption of the sentences that train."""
    run = load_run("spans", data_set, fold, PRETRAINED)
    *_, (_, state) = trainer_of(run, trainers).states(run, {})
    return {name: state.evaluated_params[name] for name in ("token_embedder", "encoder")}


def train_fold(data_set, method, fold, trainers):
    """Trains a fold; returns the test accuracy of the checkpoint that is best on held-out rows."""
    started = time.perf_counter(), time.process_time()
    run = load_run("run", data_set, fold, method)
    trainer = trainer_of(run, trainers)
    pretrained = pretrained_by_spans(data_set, fold, trainers) if method == PRETRAINED else {}
    asked = {
        split: [question.examples[0] for question in questions(run.task, split)]
        for split in ("validation", "test")
    }
    history = []
    best = None
    for number, state in trainer.states(run, pretrained):
        if due(number, every=run.eval_every_steps, last=run.total_steps):
            history.append(trainer.accuracy(state.evaluated_params, asked["validation"]))
            # Of equals the last, whose average has more steps.
            if history[-1] == max(history):
                best = number, jax.tree.map(jnp.copy, state.evaluated_params)
    step, params = best
    return {
        "data_set": data_set,
        "method": method,
        "fold": fold,
        "step": step,
        "held_out": max(history),
        "test": trainer.accuracy(params, asked["test"]),
        "test_examples": len(asked["test"]),
        "held_out_by_evaluation": [round(score, 4) for score in history],
        "seconds": round(time.perf_counter() - started[0], 1),
        "processor_seconds": round(time.process_time() - started[1], 1),
    }


def main(_):
    """Trains the folds that have no result yet, in the order of methods and data sets."""
    path = pathlib.Path(RESULTS.value)
    lines = map(json.loads, path.open()) if path.exists() else ()
    done = {(line["data_set"], line["method"], line["fold"]) for line in lines}
    trainers = {}
    for method in METHOD.value or METHODS:
        for data_set in DATA_SET.value:
            for fold in range(FOLDS.value):
                if (data_set, method, fold) not in done:
                    line = train_fold(data_set, method, fold, trainers)
                    print(json.dumps(line), flush=True)
                    with path.open("a") as file:
                        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    app.run(main)

"""Fine-tunes the base by every method; resumes after an interruption, also inside a launch.

    python -m experiments.peft.run --data=runs/peft/data --work=runs/peft

The trials of a method and a task, three learning rates with three seeds each, train in one program.
"""

import json
import os
import pathlib
import subprocess
import sys

from absl import app, flags

from experiments.peft.methods import METHODS

DATA = flags.DEFINE_string("data", None, "Folder that prepare.py wrote.", required=True)
WORK = flags.DEFINE_string("work", "runs/peft", "Has base and pieces.model; of the launches.")
TASKS = flags.DEFINE_list("tasks", ["trec", "slots"], "Tasks, in this order.")
ONLY = flags.DEFINE_list("methods", list(METHODS), "Methods, in this order.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.")
RESULTS = flags.DEFINE_string("results", "experiments/peft/results.jsonl", "Written anew.")

RATE = "Cosine.learning_rate"
# Bindings of each task, and the score that it is judged by.
BINDINGS = {
    "trec": ("STEPS=200", "Supervised.targets_length=4"),
    "slots": ("STEPS=300", "Task.metrics=['experiments.peft.slots:slot_f1']"),
}
SCORES = {"trec": "exact_match_fraction", "slots": "slot_f1_fraction"}


def folder_of(task, method):
    """Returns the folder of the launch of a method."""
    return pathlib.Path(WORK.value).absolute() / "launches" / f"{task}_{method}"


def launch(task, method):
    """Trains the trials of a method in one program, and adds its processor time to a file."""
    work = pathlib.Path(WORK.value).absolute()
    folder = folder_of(task, method)
    if (folder / "done").exists():
        return
    chosen = METHODS[method]
    rates = list(chosen.rates)
    bindings = (
        f"DATA={pathlib.Path(DATA.value).absolute() / task}",
        f"VOCABULARY={work}/pieces.model",
        f"train.initial_checkpoint={work}/base",
        *BINDINGS[task],
    )
    command = [
        *(sys.executable, "-m", "t5lite", "launch", "--on=local", f"--dir={folder.parent}"),
        *(f"--name={folder.name}", f"--vectorized={len(rates) * SEEDS.value}"),
        *("--sweep", f"{RATE}={rates}", "--sweep", f"train.seed=range({SEEDS.value})"),
        f"--maximize=part=held_out/{SCORES[task]}",
        *("--", "--gin_file=experiments/peft/finetune.gin", *chosen.flags),
        *(f"--gin.{binding}" for binding in bindings),
    ]
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    line = {"processor_seconds": round(used.ru_utime + used.ru_stime, 1)}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "processor.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    (folder / "done").touch()


def records(task, method):
    """Yields a line for each trial of a finished launch."""
    folder = folder_of(task, method)
    if not (folder / "done").exists():
        return
    lines = (folder / "processor.jsonl").read_text().splitlines()
    seconds = sum(json.loads(line)["processor_seconds"] for line in lines)
    rates = METHODS[method].rates
    for number in range(len(rates) * SEEDS.value):
        metrics = folder / f"trials/{number:04}/metrics.jsonl"
        scores = [json.loads(line) for line in metrics.read_text().splitlines()]
        last = [score for score in scores if score.get("split") == "validation"][-1]
        yield {
            "task": task,
            "method": method,
            "learning_rate": rates[number // SEEDS.value],
            "seed": number % SEEDS.value,
            "step": last["step"],
            "held_out": last[f"part=held_out/{SCORES[task]}"],
            "test": last[f"part=test/{SCORES[task]}"],
            "test_nats_per_token": last["part=test/cross_entropy_nats_per_token"],
            "processor_seconds_of_all_trials": round(seconds, 1),
        }


def main(_):
    for task in TASKS.value:
        for method in ONLY.value:
            launch(task, method)
            with pathlib.Path(RESULTS.value).open("w") as file:
                for some in BINDINGS:
                    for name in METHODS:
                        for line in records(some, name):
                            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    app.run(main)

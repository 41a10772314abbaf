"""Draws the mean test score of each method and task against the share of parameters that train.

python -m experiments.peft.plot --folder=experiments/peft
"""

import collections
import json
import pathlib
import statistics

import matplotlib.pyplot
from absl import app, flags

FOLDER = flags.DEFINE_string("folder", "experiments/peft", "Of results.jsonl and costs.jsonl.")

TITLES = {
    "trec": "questions: correct, fraction",
    "slots": "slots of utterances: F1, fraction",
}


def read_lines(name):
    return map(json.loads, (pathlib.Path(FOLDER.value) / name).read_text().splitlines())


def chosen_runs(lines):
    """Returns the runs of each task and method with the rate that is best on held-out rows."""
    runs = collections.defaultdict(lambda: collections.defaultdict(list))
    for line in lines:
        runs[line["task"], line["method"]][line["learning_rate"]].append(line)
    return {
        key: max(of_rate.values(), key=lambda some: statistics.mean(r["held_out"] for r in some))
        for key, of_rate in runs.items()
    }


def main(_):
    chosen = chosen_runs(read_lines("results.jsonl"))
    share = {
        line["method"]: line["trained_parameters"] / line["parameters"]
        for line in read_lines("costs.jsonl")
    }
    tasks = [task for task in TITLES if any(task == key[0] for key in chosen)]
    figure, axes = matplotlib.pyplot.subplots(
        1, len(tasks), figsize=(5 * len(tasks), 4), squeeze=False, layout="constrained"
    )
    for task, axis in zip(tasks, axes[0], strict=True):
        for (of_task, method), runs in chosen.items():
            if of_task != task:
                continue
            scores = [run["test"] for run in runs]
            mean = statistics.mean(scores)
            spread = [[mean - min(scores)], [max(scores) - mean]]
            axis.errorbar(share[method], mean, yerr=spread, fmt="o", capsize=3, color="C0")
            axis.annotate(method, (share[method], mean), (4, 4), textcoords="offset points")
            print(
                f"| {task} | {method} | {runs[0]['learning_rate']:g} | "
                f"{100 * statistics.mean(run['held_out'] for run in runs):.1f} | "
                f"{100 * mean:.1f} ({100 * min(scores):.1f} to {100 * max(scores):.1f}) |"
            )
        axis.set_xscale("log")
        axis.set_xlabel("fraction of parameters that train")
        axis.set_title(TITLES[task])
    figure.savefig(pathlib.Path(FOLDER.value) / "quality.png", dpi=100)


if __name__ == "__main__":
    app.run(main)

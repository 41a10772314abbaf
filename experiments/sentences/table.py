"""Prints the results of run.py as Markdown: accuracy by method and data set.

    python experiments/sentences/table.py experiments/sentences/results.jsonl

A cell is the accuracy over the sentences of all folds that are done, for other methods the paired
difference to the baseline on the same folds with its standard error over folds, and the number of
folds.
"""

import json
import pathlib
import sys

import numpy as np

DATA_SETS = ("mr", "subj", "cr", "mpqa")
BASELINE = "baseline"


def accuracy(lines):
    """Returns the share of the test sentences of some folds that are right."""
    return np.average([x["test"] for x in lines], weights=[x["test_examples"] for x in lines])


def difference(lines, baseline):
    """Returns the mean difference to the baseline in points, and its standard error."""
    both = sorted(lines.keys() & baseline.keys())
    points = 100 * np.array([lines[fold]["test"] - baseline[fold]["test"] for fold in both])
    if len(points) < 2:
        return ""
    return f", {points.mean():+.1f} ± {points.std(ddof=1) / np.sqrt(len(points)):.1f}"


def cell(lines, baseline):
    """Returns the cell of a method and a data set, whose results are given by fold."""
    if not lines:
        return ""
    compared = difference(lines, baseline) if lines is not baseline else ""
    return f"{accuracy(list(lines.values())):.1%}{compared} ({len(lines)})"


def main():
    """Prints the table."""
    results = {}
    for line in map(json.loads, pathlib.Path(sys.argv[1]).read_text().splitlines()):
        results.setdefault(line["method"], {}).setdefault(line["data_set"], {})[line["fold"]] = line
    print("| method |", " | ".join(DATA_SETS), "|")
    print("|---|" + "---|" * len(DATA_SETS))
    for method, by_data_set in results.items():
        cells = [
            cell(by_data_set.get(name, {}), results.get(BASELINE, {}).get(name, {}))
            for name in DATA_SETS
        ]
        print(f"| {method} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()

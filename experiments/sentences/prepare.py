"""Writes the folds of MR, Subj, CR and MPQA as JSON lines with the fields `text` and `label`.

DATA_SET/FOLD/{train,validation,test}.jsonl: the test sentences of a fold, and, of the other folds,
the sentences that train and a tenth that is held out to choose a checkpoint.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

DATA = flags.DEFINE_string("data", None, "Folder of rt-polarity.all and so on.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder of the results.", required=True)

# By name the file, the number of its sentences, and how many of them are of class 1.
DATA_SETS = {
    "cr": ("custrev.all", 3775, 2407),
    "mpqa": ("mpqa.all", 10606, 3312),
    "mr": ("rt-polarity.all", 10662, 5331),
    "subj": ("subj.all", 10000, 5000),
}
NUM_FOLDS = 10
# Of the folds and of what is held out.
SEED = 0


def read(path):
    """Returns the sentences of a file as published: Latin-1, in lines that end with a line feed.

    Two of the files have the control character NEL within sentences, at which `splitlines` would
    split. It is white space, as it is to `str.split`.
    """
    lines = path.read_bytes().decode("latin-1").removesuffix("\n").split("\n")
    records = []
    for line in lines:
        label, _, text = line.partition(" ")
        assert label in ("0", "1"), (path, line)
        records.append({"text": " ".join(text.split()), "label": label})
    return records


def write(path, records):
    """Writes records as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def main(_):
    """Writes all folds."""
    for name, (file, count, positive) in DATA_SETS.items():
        records = read(pathlib.Path(DATA.value) / file)
        found = (len(records), sum(record["label"] == "1" for record in records))
        assert found == (count, positive), f"{file} must have {count, positive}, got {found}"
        order = np.random.default_rng(SEED).permutation(count)
        for fold in range(NUM_FOLDS):
            others = order[np.arange(count) % NUM_FOLDS != fold]
            others = np.random.default_rng((SEED, fold)).permutation(others)
            held_out = len(others) // 10
            parts = {
                "train": others[held_out:],
                "validation": others[:held_out],
                "test": order[fold::NUM_FOLDS],
            }
            folder = pathlib.Path(OUTPUT.value) / name / str(fold)
            for split, numbers in parts.items():
                write(folder / f"{split}.jsonl", [records[number] for number in numbers])


if __name__ == "__main__":
    app.run(main)

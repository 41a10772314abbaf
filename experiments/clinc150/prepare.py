"""Writes the splits of CLINC150 as JSON lines with the fields `text` and `intent`."""

import json
import pathlib

from absl import app, flags

DATA = flags.DEFINE_string("data", None, "Folder of data_full.json and so on.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder of the results.", required=True)

SPLITS = {"train": "train", "val": "validation", "test": "test"}


def main(_):
    """Writes SIZE/SPLIT.jsonl, and SIZE/SPLIT_oos.jsonl with out-of-scope texts."""
    for size in ("full", "small"):
        data = json.loads((pathlib.Path(DATA.value) / f"data_{size}.json").read_text())
        folder = pathlib.Path(OUTPUT.value) / size
        folder.mkdir(parents=True, exist_ok=True)
        for name, split in SPLITS.items():
            for source, target in ((name, split), (f"oos_{name}", f"{split}_oos")):
                records = [{"text": text, "intent": intent} for text, intent in data[source]]
                lines = "".join(json.dumps(record) + "\n" for record in records)
                (folder / f"{target}.jsonl").write_text(lines)


if __name__ == "__main__":
    app.run(main)

"""Writes the text of pre-training and two tasks of pairs, all in lower case and of the same words.

`text/train.txt` and `text/validation.txt` have one text per line. TASK/train.jsonl and
TASK/evaluation.jsonl have `inputs`, `targets` and `part`: "train"; "held_out" for rows of the
training file that choose the learning rate; "test" for rows of the test file. No text of the last
two is pre-trained on.
"""

import json
import pathlib
import re

from absl import app, flags

DATA = flags.DEFINE_string("data", None, "Folder of the data sets.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder of the results.", required=True)

WORD = re.compile(r"\d|[^\W\d_]+|[^\w\s]|_")
# One piece of the vocabulary each.
CLASSES = ("reason", "thing", "short", "person", "place", "number")
# One record of so many is held out, or is the text of a validation file.
HELD_OUT = 10
VALIDATION = 100
# One record of so many is tested: 534 of 3,731 utterances.
TESTED_SLOTS = 7


def words(text):
    """Returns a text as words, single digits and other characters, with spaces between them.

    >>> words("A table for 12, at 7pm")
    'a table for 1 2 , at 7 pm'
    """
    return " ".join(WORD.findall(text.replace("\ufffd", "'").lower()))


def question(line):
    """Returns the pair of a question and its class."""
    label, _, text = line.partition("\t")
    return {"inputs": words(text), "targets": CLASSES[int(label)]}


def utterance(record):
    """Returns the pair of an utterance and its slots, in the order of the text."""
    asked = record.get("context", {}).get("requestedSlots", [])
    text = record["userInput"]["text"]
    found = []
    for label in record.get("labels", []):
        span = label["valueSpan"]
        start = span.get("startIndex", 0)
        slot = label["slot"].replace("_", " ")
        found.append((start, f"{slot} : {words(text[start : span['endIndex']])}"))
    targets = " ; ".join(value for _, value in sorted(found)) or "none"
    about = "".join(f"{slot.replace('_', ' ')} ? " for slot in asked)
    return {"inputs": about + words(text), "targets": targets}


def split_task(train, test):
    """Returns the records of training and those of evaluation, with their part."""
    kept = [record for number, record in enumerate(train) if number % HELD_OUT]
    parts = {"train": kept, "held_out": train[::HELD_OUT], "test": test}
    named = {
        part: [{**record, "part": part} for record in records] for part, records in parts.items()
    }
    return named["train"], named["held_out"] + named["test"]


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def other_texts(data):
    """Yields the texts that neither task has."""
    for name in ("rt-polarity", "subj", "custrev", "mpqa"):
        # Latin-1 with line ends of that code inside of lines.
        content = (data / "sentences" / f"{name}.all").read_bytes().decode("latin-1")
        yield from (line.partition(" ")[2] for line in content.split("\n"))
    captions = (data / "multi30k/raw/train.en-de.tsv").read_text().splitlines()
    yield from (line.partition("\t")[0] for line in captions)
    intents = json.loads((data / "clinc150/data_full.json").read_text())
    yield from (text for text, _ in intents["train"])


def main(_):
    data, output = pathlib.Path(DATA.value), pathlib.Path(OUTPUT.value)
    questions = [
        [question(line) for line in (data / f"trec/trec.{name}.tsv").read_text().splitlines()]
        for name in ("train", "test")
    ]
    utterances = [
        [utterance(record) for record in json.loads((data / f"restaurant8k/{name}").read_text())]
        for name in ("train_0.json", "test.json")
    ]
    utterances[1] = utterances[1][::TESTED_SLOTS]
    texts = [words(text) for text in other_texts(data)]
    for name, (train, test) in (("trec", questions), ("slots", utterances)):
        kept, evaluation = split_task(train, test)
        write_lines(output / name / "train.jsonl", map(json.dumps, kept))
        write_lines(output / name / "evaluation.jsonl", map(json.dumps, evaluation))
        texts += [record["inputs"] for record in kept]
    texts = [text for text in texts if text]
    validation = texts[::VALIDATION]
    train = [text for number, text in enumerate(texts) if number % VALIDATION]
    write_lines(output / "text/train.txt", train)
    write_lines(output / "text/validation.txt", validation)


if __name__ == "__main__":
    app.run(main)

"""Writes RESTAURANTS-8K as JSON lines: the words of an utterance and the tag of each.

Words are runs of letters, runs of digits, or single other characters, in lower case. The slots
that the system asked for come first, as words of their own. Every tenth training record is for
validation. SPLIT_slots.jsonl asks for each slot of an utterance, whose answer may be empty.
SPLIT_text.jsonl has all slots and values of an utterance as one text, or "none".
"""

import json
import pathlib
import re

from absl import app, flags

DATA = flags.DEFINE_string("data", None, "Folder of train_0.json and test.json.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder of the results.", required=True)

SLOTS = ("people", "date", "time", "first_name", "last_name")
WORD = re.compile(r"\d+|[^\W\d_]+|[^\w\s]|_")
HELD_OUT = 10


def tagged(record):
    """Returns the words and tags of a record."""
    # The replacement character, which vocabularies drop, mostly stands for an apostrophe.
    text = record["userInput"]["text"].replace("\ufffd", "'")
    found = list(WORD.finditer(text))
    tags = ["O"] * len(found)
    for label in record.get("labels", []):
        span = label["valueSpan"]
        start, end = _stripped(text, span.get("startIndex", 0), span["endIndex"])
        inside = [n for n, word in enumerate(found) if start <= word.start() and word.end() <= end]
        edges = (found[inside[0]].start(), found[inside[-1]].end()) if inside else None
        if edges != (start, end):
            print(f"no words end where the span does: {text!r} {text[start:end]!r}")
        for number in inside:
            tags[number] = ("I-" if number > inside[0] else "B-") + label["slot"]
    asked = [f"asked_{slot}" for slot in record.get("context", {}).get("requestedSlots", [])]
    words = [*asked, *(word.group().lower() for word in found)]
    return {"words": words, "tags": ["O"] * len(asked) + tags}


def questions(example):
    """Returns a question for each slot, of words and tags; the answer is the first such span."""
    text = " ".join(example["words"])
    # Of several values of a slot the first.
    first = dict(reversed(list(values(example["words"], example["tags"]))))
    for slot in SLOTS:
        yield {"slot": slot, "text": text, "answer": first.get(slot, "")}


def values(words, tags):
    """Yields the slot and the value of each span, in order."""
    for start, tag in enumerate(tags):
        if tag.startswith("B-"):
            end = start + 1
            while end < len(tags) and tags[end] == f"I-{tag[2:]}":
                end += 1
            yield tag[2:], " ".join(words[start:end])


def as_text(example):
    """Returns an utterance, and its slots and values as one text."""
    found = values(example["words"], example["tags"])
    slots = " ; ".join(f"{slot} : {value}" for slot, value in found)
    return {"text": " ".join(example["words"]), "slots": slots or "none"}


def _stripped(text, start, end):
    """Returns the ends of a span without white space at them; a few published ones have some."""
    value = text[start:end]
    return start + len(value) - len(value.lstrip()), end - len(value) + len(value.rstrip())


def main(_):
    """Writes three files for each of train, validation and test."""
    data = pathlib.Path(DATA.value)
    train = json.loads((data / "train_0.json").read_text())
    splits = {
        "train": [r for number, r in enumerate(train) if number % HELD_OUT],
        "validation": train[::HELD_OUT],
        "test": json.loads((data / "test.json").read_text()),
    }
    folder = pathlib.Path(OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in splits.items():
        examples = [tagged(record) for record in records]
        asked = [question for example in examples for question in questions(example)]
        texts = [as_text(example) for example in examples]
        for name, some in ((split, examples), (f"{split}_slots", asked), (f"{split}_text", texts)):
            lines = "".join(json.dumps(each) + "\n" for each in some)
            (folder / f"{name}.jsonl").write_text(lines)


if __name__ == "__main__":
    app.run(main)

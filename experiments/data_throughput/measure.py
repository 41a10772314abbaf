"""Measures the data pipeline: tokens per second, row occupancy, memory, time to seek.

    python experiments/data_throughput/measure.py --vocabulary=spiece.model --work=FOLDER

Appends one JSON object per row of the tables in README.md to `results.jsonl` in the work directory.
Token counts include inputs and targets but not padding.
"""

import contextlib
import itertools
import json
import pathlib
import resource
import time
from collections.abc import Iterator, Sequence

import numpy as np
from absl import app, flags

from t5lite.data.batching.features import EncoderDecoderLayout, Layout
from t5lite.data.batching.row_stream import Cursor
from t5lite.data.batching.stream import Batches
from t5lite.data.sources.file_source import FileSource
from t5lite.data.sources.tfds_source import TfdsSource
from t5lite.data.task import Task
from t5lite.data.text.vocabularies import ByteVocabulary, SentencePieceVocabulary
from t5lite.objectives.span_corruption import SpanCorruption
from t5lite.objectives.supervised import Supervised

VOCABULARY = flags.DEFINE_string("vocabulary", None, "A SentencePiece model.", required=True)
WORK = flags.DEFINE_string("work", None, "Directory for data and results.", required=True)
PARTS = flags.DEFINE_list("parts", ["throughput", "fill", "memory", "seek"], "What to measure.")
EXAMPLES = flags.DEFINE_integer("examples", 10_000_000, "Examples in the memory measurement.")

NUM_RECORDS = 100_000
BATCH_SIZE = 128
SPAN_LAYOUT = EncoderDecoderLayout(512, 114)
SECONDS = 20.0


def write_text(folder: pathlib.Path, vocabulary: SentencePieceVocabulary) -> pathlib.Path:
    """Writes records of Python's language reference with 20 to 400 tokens, uniform."""
    path = folder / "text.jsonl"
    if path.exists():
        return path
    topics = TfdsSource(name="python_docs").records("train")
    text = " ".join(topics[n]["text"] for n in range(len(topics)))
    ids = vocabulary.encode(text)
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(NUM_RECORDS):
            length = int(rng.integers(20, 401))
            start = int(rng.integers(0, len(ids) - length))
            piece = vocabulary.decode(ids[start : start + length])
            file.write(json.dumps({"text": piece}) + "\n")
    return path


def batches_of(
    task: Task,
    layout: Layout,
    *,
    packed: bool,
    workers: int = 0,
    batch_size: int = BATCH_SIZE,
    cursors: Sequence[Cursor] | None = None,
) -> Batches:
    """Returns all rows of the batches of a task."""
    return Batches(
        *(task, "train", layout),
        rows=range(batch_size),
        batch_size=batch_size,
        seed=0,
        packed=packed,
        cursors=cursors,
        workers=workers,
    )


def throughput(task: Task, *, packed: bool, workers: int) -> dict[str, float]:
    """Measures tokens and rows per second, after the first batches."""
    with contextlib.closing(
        batches_of(task, SPAN_LAYOUT, packed=packed, workers=workers)
    ) as batches:
        for _ in range(5):
            next(batches)
        tokens = rows = 0
        started = time.perf_counter()
        while (seconds := time.perf_counter() - started) < SECONDS:
            features, _ = next(batches)
            rows += BATCH_SIZE
            tokens += sum(
                int((features[f"{side}_segment_ids"] > 0).sum()) for side in ("encoder", "decoder")
            )
    return {"tokens_per_second": round(tokens / seconds), "rows_per_second": round(rows / seconds)}


def fill(folder: pathlib.Path) -> dict[str, float]:
    """Measures row occupancy: inputs of 20 to 400 tokens, uniform; targets a fifth as long."""
    path = folder / "pairs.tsv"
    rng = np.random.default_rng(1)
    lengths = rng.integers(20, 401, NUM_RECORDS)
    # One token is the end of the sequence.
    lines = (f"{'x' * (n - 1)}\t{'y' * max(n // 5 - 1, 1)}\n" for n in lengths)
    path.write_text("".join(lines))
    task = Task(
        source=FileSource(
            files={"train": str(path)}, fields=("inputs", "targets"), data_dir=str(folder / "tfds")
        ),
        vocabulary=ByteVocabulary(),
        objective=Supervised(inputs_length=512, targets_length=128),
        inputs="{inputs}",
        targets="{targets}",
    )
    layout = EncoderDecoderLayout(512, 128)
    with contextlib.closing(batches_of(task, layout, packed=True)) as batches:
        started = time.perf_counter()
        made = [features for features, _ in itertools.islice(batches, 100)]
        seconds = time.perf_counter() - started
    segments = np.concatenate([features["encoder_segment_ids"] for features in made])
    examples = int(segments.max(axis=1).sum())
    return {
        "inputs_fill_fraction": round(float((segments > 0).mean()), 4),
        "examples_per_second": round(examples / seconds),
    }


def memory(
    folder: pathlib.Path, num_examples: int, *, packed: bool, batch_size: int
) -> Iterator[dict[str, float]]:
    """Yields memory at ten points, and at the end the time to seek to the following batch."""
    path = folder / "short.txt"
    rng = np.random.default_rng(2)
    path.write_text("".join(f"{'z' * n}\n" for n in rng.integers(1, 24, 1_000_000)))
    task = Task(
        source=FileSource(files={"train": str(path)}, data_dir=str(folder / "tfds")),
        vocabulary=ByteVocabulary(),
        objective=SpanCorruption(inputs_length=128),
        join_documents=False,
    )
    layout, seen, batch, marks = EncoderDecoderLayout(128, 96), 0, 0, list(range(1, 11))
    choices = {"packed": packed, "batch_size": batch_size}
    with contextlib.closing(batches_of(task, layout, **choices)) as batches:
        while marks:
            features, cursors = next(batches)
            batch += 1
            seen += int(features["decoder_segment_ids"].max(axis=1).sum())
            if marks and seen >= num_examples * marks[0] / 10:
                marks.pop(0)
                yield {"examples": seen, "batches": batch, "resident_megabytes": _resident()}
        following = next(batches)[0]
    saved = json.dumps([cursor.to_json() for cursor in cursors])
    started = time.perf_counter()
    restored = [Cursor.from_json(cursor) for cursor in json.loads(saved)]
    with contextlib.closing(batches_of(task, layout, **choices, cursors=restored)) as again:
        features, _ = next(again)
        seconds = time.perf_counter() - started
    assert all((features[name] == following[name]).all() for name in features)
    yield {"seek_to_batch": batch + 1, "seek_seconds": round(seconds, 2), "state_bytes": len(saved)}


def _resident() -> float:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)


def main(_: list[str]) -> None:
    folder = pathlib.Path(WORK.value)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"

    def write(row: dict[str, object]) -> None:
        line = json.dumps({"date": time.strftime("%Y-%m-%d"), **row})
        print(line, flush=True)
        with results.open("a") as file:
            file.write(line + "\n")

    if "throughput" in PARTS.value:
        vocabulary = SentencePieceVocabulary(path=VOCABULARY.value)
        source = FileSource(
            files={"train": str(write_text(folder, vocabulary))}, data_dir=str(folder / "tfds")
        )
        for cached, joined, workers in itertools.product((False, True), (True, False), (0, 2)):
            task = Task(
                source=source,
                vocabulary=vocabulary,
                objective=SpanCorruption(inputs_length=512),
                join_documents=joined,
                token_cache=str(folder / "tokens") if cached else None,
            )
            task.tokens("train")
            found = throughput(task, packed=not joined, workers=workers)
            what = {"cache": cached, "documents": "joined" if joined else "packed"}
            write({"part": "throughput", **what, "workers": workers, **found})
    if "fill" in PARTS.value:
        write({"part": "fill", **fill(folder)})
    if "memory" in PARTS.value:
        for row in memory(folder, EXAMPLES.value, packed=True, batch_size=BATCH_SIZE):
            write({"part": "memory", **row})
    if "seek" in PARTS.value:
        for row in memory(folder, EXAMPLES.value, packed=False, batch_size=8):
            write({"part": "seek", **row})


if __name__ == "__main__":
    app.run(main)

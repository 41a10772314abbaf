"""A mixture of all kinds of tasks, and digests of its batches from several processes."""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import pathlib
from collections.abc import Sequence

import numpy as np

from t5lite.data.batching.features import DecoderLayout, EncoderDecoderLayout, Features, Layout
from t5lite.data.batching.row_stream import Cursor
from t5lite.data.batching.stream import Batches
from t5lite.data.mixture import Mixture
from t5lite.data.sources.file_source import FileSource
from t5lite.data.task import Task
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.objectives.causal import Causal
from t5lite.objectives.span_corruption import SpanCorruption
from t5lite.objectives.supervised import Supervised
from t5lite.objectives.ul2 import UL2

BATCH_SIZE = 8
LAYOUT = EncoderDecoderLayout(96, 96)


def write_files(folder: pathlib.Path) -> None:
    """Writes text with lines of different lengths, and pairs of them."""
    rng = np.random.default_rng(7)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    lines = [" ".join(rng.choice(words, rng.integers(1, 60))) for _ in range(300)]
    (folder / "text.txt").write_text("\n".join(lines))
    pairs = [
        json.dumps({"en": f"{i} {line[:60]}", "de": line[: rng.integers(0, 40)]})
        for i, line in enumerate(lines)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(pairs))


def mixture(folder: str) -> Mixture:
    """Span corruption of joined text, UL2 of separate documents, and supervised pairs."""
    vocabulary = ByteVocabulary()

    def source(name: str, fields: Sequence[str] = ("text",)) -> FileSource:
        files = {"train": name, "validation": name}
        return FileSource(files=files, fields=fields, folder=folder, data_dir=f"{folder}/tfds")

    spans = Task(
        name="spans",
        source=source("text.txt"),
        vocabulary=vocabulary,
        objective=SpanCorruption(inputs_length=90),
    )
    ul2 = Task(
        name="ul2",
        source=source("text.txt"),
        vocabulary=vocabulary,
        objective=UL2(inputs_length=96, targets_length=96),
        join_documents=False,
    )
    pairs = Task(
        name="pairs",
        source=source("pairs.jsonl", ("en", "de")),
        vocabulary=vocabulary,
        objective=Supervised(inputs_length=96, targets_length=48),
        inputs="translate: {en}",
        targets="{de}",
    )
    return Mixture(
        components=[Mixture(components=[spans, ul2], shares=[1.0, 2.0]), pairs], shares=[1.0, 1.0]
    )


def causal(folder: str, **special: int) -> Task:
    """Causal language modelling of separate documents."""
    return Task(
        source=mixture(folder).tasks[1].source,
        vocabulary=ByteVocabulary(special=SpecialTokens(**special)),
        objective=Causal(targets_length=40),
        join_documents=False,
    )


def take(
    task: Task | Mixture,
    count: int,
    *,
    layout: Layout = LAYOUT,
    rows: Sequence[int] = range(BATCH_SIZE),
    packed: bool = True,
    seed: int = 0,
    cursors: Sequence[Cursor] | None = None,
    workers: int = 0,
) -> list[tuple[Features, list[Cursor]]]:
    """Returns the next `count` batches."""
    batches = Batches(
        *(task, "train", layout),
        rows=rows,
        batch_size=BATCH_SIZE,
        packed=packed,
        seed=seed,
        cursors=cursors,
        workers=workers,
    )
    with contextlib.closing(batches):
        return list(itertools.islice(batches, count))


def part_of(
    folder: str, count: int, rows: Sequence[int], workers: int, cursors: Sequence[Cursor] | None
) -> list[tuple[Features, list[Cursor]]]:
    """Returns the batches of one process of several."""
    return take(mixture(folder), count, rows=rows, workers=workers, cursors=cursors)


def global_batches(
    folder: str,
    count: int,
    *,
    processes: int,
    workers: int = 0,
    cursors: Sequence[Cursor] | None = None,
) -> tuple[list[Features], list[Cursor]]:
    """Returns the batches of several processes together, and the cursors after them."""
    shares = np.array_split(range(BATCH_SIZE), processes)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = [
            pool.submit(
                *(part_of, folder, count, rows.tolist(), workers),
                None if cursors is None else [cursors[row] for row in rows],
            )
            for rows in shares
        ]
        parts = [future.result() for future in futures]
    batches = [
        {name: np.concatenate([p[0][name] for p in step]) for name in step[0][0]}
        for step in zip(*parts, strict=True)
    ]
    return batches, [cursor for part in parts for cursor in part[-1][1]]


def digest(batches: Sequence[Features]) -> str:
    """Returns the SHA-256 of the features of batches."""
    total = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            total.update(name.encode() + batch[name].tobytes())
    return total.hexdigest()


def decoder_layout() -> DecoderLayout:
    """The layout of `causal`."""
    return DecoderLayout(64)

"""Numbers about data: to hold a model's loss against, and to choose lengths by."""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from t5lite.data.batching.features import Layout
from t5lite.data.batching.stream import Batches
from t5lite.data.mixture import Mixture
from t5lite.data.task import Task

# Of the batches whose rows are looked at.
NUM_BATCHES = 20


def unigram_entropy(task: Task, split: str) -> float:
    """Returns the entropy of the split's token frequencies, in nats per token.

    It is the least cross-entropy of a model that knows how frequent each token is, and nothing of
    its neighbours. For a byte vocabulary it is the entropy of the byte distribution.
    """
    counts = np.zeros(task.vocabulary.size, np.int64)
    records = task.tokens(split)
    for number in range(len(records)):
        # The targets of a pair; the text itself where that is all.
        *_, tokens = records[number] or (np.zeros(0, np.int32),)
        counts += np.bincount(tokens, minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Of one text of the records, in tokens without an end of sequence.

    Args:
        tokens_per_epoch: in all records; estimated where not all were looked at.
        cut_fraction: share of the records that are longer than the objective takes, and are cut.
    """

    smallest: int
    median: float
    mean: float
    percentile_95: float
    largest: int
    tokens_per_epoch: float
    cut_fraction: float


@dataclasses.dataclass(frozen=True)
class TaskStatistics:
    """What the records of a task are like.

    Args:
        records: in the split; `looked_at` of them, `left_out` of those by a step.
        lengths: by the name of the text, `inputs` and `targets`.
    """

    records: int
    looked_at: int
    left_out: int
    lengths: dict[str, Lengths]


@dataclasses.dataclass(frozen=True)
class RowStatistics:
    """What the rows of batches hold.

    Args:
        examples_per_row: on average.
        fill_fraction: share of places with a token, by the side of the model, padding the rest.
        tokens_per_batch: on average, both sides together, without padding.
    """

    examples_per_row: float
    fill_fraction: dict[str, float]
    tokens_per_batch: float


def task_statistics(task: Task, split: str, *, max_records: int) -> TaskStatistics:
    """Looks at records of `split` from all over it, all of them if there are no more."""
    records = task.tokens(split)
    count = min(max_records, len(records))
    numbers = np.unique(np.linspace(0, len(records) - 1, num=count).astype(int))
    texts = [records[int(number)] for number in numbers]
    kept = [text for text in texts if text]
    names = ("inputs", "targets") if task.takes_pairs else ("targets",)
    limits = (task.objective.inputs_length, task.objective.targets_length)
    return TaskStatistics(
        records=len(records),
        looked_at=len(texts),
        left_out=len(texts) - len(kept),
        lengths={
            name: _lengths(
                [len(text[at]) for text in kept] or [0],
                len(records) / len(texts),
                # The end of sequence needs a place of its own.
                limits[at] - 1 if task.takes_pairs else None,
            )
            for at, name in enumerate(names)
        },
    )


def _lengths(lengths: Sequence[int], scale: float, limit: int | None) -> Lengths:
    counts = np.asarray(lengths)
    return Lengths(
        smallest=int(counts.min()),
        median=float(np.median(counts)),
        mean=float(counts.mean()),
        percentile_95=float(np.percentile(counts, 95)),
        largest=int(counts.max()),
        tokens_per_epoch=float(counts.sum() * scale),
        cut_fraction=0.0 if limit is None else float((counts > limit).mean()),
    )


def row_statistics(
    task: Task | Mixture, split: str, layout: Layout, *, batch_size: int, seed: int, packed: bool
) -> RowStatistics:
    """Looks at the first batches that training on `split` would take."""
    batches = Batches(
        *(task, split, layout),
        rows=range(batch_size),
        batch_size=batch_size,
        seed=seed,
        packed=packed,
    )
    with contextlib.closing(batches):
        features = [made for made, _ in itertools.islice(batches, NUM_BATCHES)]
    segments = {
        name.removesuffix("_segment_ids"): np.stack([batch[name] for batch in features])
        for name in features[0]
        if name.endswith("_segment_ids")
    }
    examples = np.max([ids.max(axis=-1) for ids in segments.values()], axis=0)
    tokens = sum(int((ids > 0).sum()) for ids in segments.values())
    return RowStatistics(
        examples_per_row=float(examples.mean()),
        fill_fraction={side: float((ids > 0).mean()) for side, ids in segments.items()},
        tokens_per_batch=tokens / len(features),
    )

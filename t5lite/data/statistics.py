"""Statistics of data: bounds for a model's loss, and figures for choosing lengths."""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from t5lite.core.examples import Tokens
from t5lite.data.batching.features import Layout
from t5lite.data.batching.stream import Batches
from t5lite.data.mixture import Mixture
from t5lite.data.task import Task

# The rows of this many batches are counted.
NUM_BATCHES = 20


def unigram_entropy(task: Task, split: str) -> float:
    """Returns the entropy of the token frequencies of a split, in nats per token.

    It is the lowest cross-entropy of a model that ignores context. For a byte vocabulary it is the
    entropy of the byte distribution.
    """
    counts = np.zeros(task.vocabulary.size, np.int64)
    records = task.tokens(split)
    for number in range(len(records)):
        # The targets of pairs, or the running text.
        for tokens in records[number][1::2] if task.takes_pairs else records[number][:1]:
            counts += np.bincount(tokens, minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


@dataclasses.dataclass(frozen=True)
class LengthStatistics:
    """The lengths of one text of the records, in tokens without an end of sequence.

    Args:
        tokens_per_epoch: in all records; an estimate if only some were read.
        cut_fraction: fraction of the records that the objective truncates.
        unknown_fraction: fraction of the tokens that are unknown to the vocabulary.
    """

    smallest: int
    median: float
    mean: float
    percentile_95: float
    largest: int
    tokens_per_epoch: float
    cut_fraction: float
    unknown_fraction: float


@dataclasses.dataclass(frozen=True)
class TaskStatistics:
    """Statistics of the records of a task.

    Args:
        records: number of records in the split.
        looked_at: number of records that were read.
        left_out: those of them that preprocessors drop.
        lengths: for each text, `inputs` and `targets`.
    """

    records: int
    looked_at: int
    left_out: int
    lengths: dict[str, LengthStatistics]


@dataclasses.dataclass(frozen=True)
class RowStatistics:
    """Statistics of the rows of batches.

    Args:
        examples_per_row: the mean.
        fill_fraction: fraction of positions with a token, for each side of the model.
        tokens_per_batch: the mean, on both sides together, without padding.
    """

    examples_per_row: float
    fill_fraction: dict[str, float]
    tokens_per_batch: float


def task_statistics(task: Task, split: str, *, max_records: int) -> TaskStatistics:
    """Returns statistics of at most `max_records` records, evenly spaced over the split."""
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
                [ids for text in kept for ids in text[at::2]] or [np.zeros(0, np.int32)],
                len(records) / len(texts),
                # The end of sequence takes a position.
                limits[at] - 1 if task.takes_pairs else None,
                task.vocabulary.unknown_id if task.vocabulary.has_unknown_pieces else None,
            )
            for at, name in enumerate(names)
        },
    )


def _lengths(
    texts: Sequence[Tokens], scale: float, limit: int | None, unknown_id: int | None
) -> LengthStatistics:
    counts = np.asarray([len(ids) for ids in texts])
    unknown = sum(int((ids == unknown_id).sum()) for ids in texts) if unknown_id is not None else 0
    return LengthStatistics(
        smallest=int(counts.min()),
        median=float(np.median(counts)),
        mean=float(counts.mean()),
        percentile_95=float(np.percentile(counts, 95)),
        largest=int(counts.max()),
        tokens_per_epoch=float(counts.sum() * scale),
        cut_fraction=0.0 if limit is None else float((counts > limit).mean()),
        unknown_fraction=unknown / max(int(counts.sum()), 1),
    )


def row_statistics(
    task: Task | Mixture, split: str, layout: Layout, *, batch_size: int, seed: int, packed: bool
) -> RowStatistics:
    """Returns statistics of the first batches of training on `split`."""
    batches = Batches(
        task,
        split,
        layout,
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
